//! rsyslog from Debian as the receiver.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{distinct, emit, epochs, eventually, free_address, start, stats};

/// A running rsyslogd that writes what it parsed into a file, one message per line.
struct Rsyslog {
    process: Child,
    output: PathBuf,
    // Last, so that the files outlive the process.
    directory: tempfile::TempDir,
}

impl Rsyslog {
    fn start(address: SocketAddr, udp: bool, tls: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::start_in(directory, address, udp, tls)
    }

    fn start_in(directory: tempfile::TempDir, address: SocketAddr, udp: bool, tls: Option<&Path>) -> Self {
        let output = directory.path().join("received");
        let port = address.port();
        let (driver, mode) = match tls {
            None => (String::new(), ""),
            Some(files) => {
                let file = |name: &str| files.join(name).display().to_string();
                (
                    format!(
                        "global(defaultNetstreamDriver=\"gtls\" defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\" defaultNetstreamDriverKeyFile=\"{}\")\n",
                        file("ca.pem"),
                        file("server.pem"),
                        file("server-key.pem"),
                    ),
                    " StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" StreamDriver.AuthMode=\"anon\"",
                )
            }
        };
        let udp = if udp {
            format!("module(load=\"imudp\")\ninput(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\")\n")
        } else {
            String::new()
        };
        let config = format!(
            "global(workDirectory=\"{work}\" maxMessageSize=\"64k\")\n{driver}\
             module(load=\"imtcp\"{mode})\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n{udp}\
             template(name=\"all\" type=\"string\" string=\"%pri%|%timestamp:::date-rfc3339%|%hostname%|%app-name%|%procid%|%msgid%|%structured-data%|%msg%\\n\")\n\
             action(type=\"omfile\" file=\"{output}\" template=\"all\" flushOnTXEnd=\"on\")\n",
            work = directory.path().display(),
            output = output.display(),
        );
        let config_file = directory.path().join("rsyslog.conf");
        fs::write(&config_file, config).expect("writable");
        let program = ["/usr/sbin/rsyslogd", "/sbin/rsyslogd"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("rsyslogd is missing: install it with apt-get install rsyslog rsyslog-gnutls");
        let log = fs::File::create(directory.path().join("rsyslog.log")).expect("writable");
        let process = Command::new(program)
            .arg("-n")
            .arg("-f")
            .arg(&config_file)
            .arg("-i")
            .arg(directory.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("rsyslogd starts");
        let mut this = Self { process, output, directory };
        eventually("rsyslogd listens", || {
            if let Some(status) = this.process.try_wait().expect("our child") {
                panic!("rsyslogd ended with {status}: {}", this.log());
            }
            std::net::TcpStream::connect(address).is_ok()
        });
        this
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("rsyslog.log")).unwrap_or_default()
    }

    /// The fields of every received message that is one of ours.
    fn messages(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| line.splitn(8, '|').map(str::to_owned).collect::<Vec<_>>())
            .filter(|fields| fields.get(3).is_some_and(|app| app == "jump-gateway"))
            .collect()
    }

    fn epochs(&self) -> Vec<u64> {
        epochs(self.messages().iter().map(|fields| fields[7].as_str()))
    }

    fn kill(mut self) -> tempfile::TempDir {
        self.process.kill().expect("our child");
        self.process.wait().expect("our child");
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a directory"));
        drop(self);
        directory
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sink(transport: &str, address: &str, more: &str) -> String {
    format!(
        "[[sinks]]\nkind = \"syslog\"\nname = \"siem\"\ntransport = \"{transport}\"\naddress = \"{address}\"\n{more}"
    )
}

#[test]
fn rsyslog_reads_every_field_of_a_message_over_tcp() {
    let address = free_address();
    let rsyslog = Rsyslog::start(address, false, None);
    let (audit, guard) = start(&sink("tcp", &address.to_string(), ""));
    emit(&audit, 0..500);
    eventually("rsyslog has all", || rsyslog.messages().len() == 500);
    assert_eq!(rsyslog.epochs(), (0..500).collect::<Vec<_>>());
    assert_eq!((stats(&guard, "siem").sent, stats(&guard, "siem").dropped()), (500, 0));

    let first = &rsyslog.messages()[0];
    // Facility 13 (log audit), severity 6 (informational).
    assert_eq!(first[0], "110");
    assert!(first[1].ends_with("+00:00") || first[1].ends_with('Z'), "{}", first[1]);
    assert_eq!((first[2].as_str(), first[5].as_str()), ("gw1", "session_owner_changed"));
    assert_eq!(first[4], std::process::id().to_string());
    assert_eq!(first[6], "[origin software=\"jumping-vpn\" swVersion=\"0.1.0\"][meta sequenceId=\"1\"]");
}

#[test]
fn rsyslog_reads_messages_over_udp() {
    let address = free_address();
    let rsyslog = Rsyslog::start(address, true, None);
    let (audit, _guard) = start(&sink("udp", &address.to_string(), ""));
    emit(&audit, 0..50);
    eventually("rsyslog has all", || distinct(&rsyslog.epochs()) == (0..50).collect::<Vec<_>>());
}

#[test]
fn rsyslog_reads_messages_over_tls_and_a_stranger_s_certificate_is_refused() {
    let files = tempfile::tempdir().expect("a directory");
    crate::support::pki(files.path());
    let address = free_address();
    let rsyslog = Rsyslog::start(address, false, Some(files.path()));
    let host = format!("localhost:{}", address.port());
    let tls = |ca: &str| format!("tls = {{ ca_file = {:?} }}", files.path().join(ca));

    let (audit, guard) = start(&sink("tls", &host, &tls("ca.pem")));
    emit(&audit, 0..200);
    eventually("rsyslog has all", || rsyslog.messages().len() == 200);
    assert_eq!(rsyslog.epochs(), (0..200).collect::<Vec<_>>());
    assert!(guard.close(Duration::from_secs(5)));

    let (audit, guard) = start(&sink("tls", &host, &tls("other-ca.pem")));
    emit(&audit, 200..201);
    eventually("the sink fails", || stats(&guard, "siem").failures >= 2);
    assert_eq!((stats(&guard, "siem").sent, rsyslog.messages().len()), (0, 200));
}

#[test]
fn events_reach_rsyslog_again_after_it_was_killed_and_restarted() {
    let address = free_address();
    let rsyslog = Rsyslog::start(address, false, None);
    let (audit, guard) = start(&sink("tcp", &address.to_string(), ""));
    emit(&audit, 0..100);
    eventually("rsyslog has the first", || rsyslog.messages().len() == 100);
    let directory = rsyslog.kill();
    emit(&audit, 100..200);
    eventually("the sink notices", || stats(&guard, "siem").failures > 0);
    let rsyslog = Rsyslog::start_in(directory, address, false, None);
    // The connection was idle when it died, so nothing was on its way: nothing may be missing.
    eventually("rsyslog has all", || distinct(&rsyslog.epochs()) == (0..200).collect::<Vec<_>>());
    assert_eq!(stats(&guard, "siem").dropped(), 0);
}
