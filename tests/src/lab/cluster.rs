//! A whole cluster of real programs in a network of its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::etcd::{Etcd, wait_until};
use super::network::{Host, LAN_NETWORK, LAN6_NETWORK, Network, POOL, POOL6, ReturnRoute, Shape};
use super::ownership::{Ownership, OwnershipWatch};
use super::process::{Mark, Process};
use super::programs::{self, Build, GATEWAY_PORT, Operator, Pki, StoreConfig};
use super::run_dir::RunDir;

/// How long a program may take to say that it is ready.
const READY_MAX: Duration = Duration::from_secs(30);

/// Where control keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// One control replica with the embedded store.
    Embedded,
    /// Two control replicas over three etcd nodes.
    Etcd,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Names the run directory.
    pub label: &'static str,
    /// The store, and with it the number of control replicas.
    pub store: Store,
    /// Gateways.
    pub gateways: usize,
    /// Devices, enrolled and not yet up.
    pub devices: usize,
    /// The inner network's way back.
    pub return_route: ReturnRoute,
    /// Settings (TOML) added to the configuration of every control replica.
    pub control_settings: String,
    /// TOML tables added to the configuration of every gateway.
    pub gateway_settings: String,
    /// Whether control and gateways export audit events to files.
    pub audit: bool,
    /// Whether the networks and the pool have IPv6 too.
    pub dual_stack: bool,
    /// Which builds take part.
    pub builds: Builds,
}

/// The build of each part. Operators and certificates use the tests' own.
#[derive(Debug, Clone, Default)]
pub struct Builds {
    /// Of control.
    pub control: Build,
    /// Of the gateways, by number; the tests' own where there is none.
    pub gateways: Vec<Build>,
    /// Of the devices.
    pub device: Build,
}

impl Plan {
    /// Two gateways, one device, the embedded store, the way back through the second gateway.
    pub fn small(label: &'static str) -> Self {
        Self {
            label,
            store: Store::Embedded,
            gateways: 2,
            devices: 1,
            return_route: ReturnRoute::Gateway(1),
            control_settings: String::new(),
            gateway_settings: String::new(),
            audit: true,
            dual_stack: false,
            builds: Builds::default(),
        }
    }

    /// The same over another store.
    #[must_use]
    pub fn with_store(mut self, store: Store) -> Self {
        self.store = store;
        self
    }
}

/// A running cluster. Programs end before their network goes, and the run directory goes last.
#[derive(Debug)]
pub struct Cluster {
    /// Devices that are up, by number; `None` when down.
    pub devices: Vec<Option<Process>>,
    /// Gateways: supervisors, each with its worker as a child process.
    pub gateways: Vec<Process>,
    /// Control replicas.
    pub controls: Vec<Process>,
    /// etcd, with that store.
    pub etcd: Option<Etcd>,
    /// The network.
    pub network: Network,
    /// Certificates.
    pub pki: Pki,
    /// The operators' CLI.
    pub operator: Operator,
    /// Logs and state.
    pub run: RunDir,
    store: StoreConfig,
    plan: Plan,
}

impl Cluster {
    /// Builds the network and starts everything but the devices; returns when all of it is ready.
    ///
    /// # Errors
    /// When a program is not built, does not start, or is not ready in time.
    pub fn start(plan: &Plan) -> Result<Self> {
        let run = RunDir::create(plan.label)?;
        let (controls, stores) = match plan.store {
            Store::Embedded => (1, 0),
            Store::Etcd => (2, 3),
        };
        let shape = Shape { devices: plan.devices, gateways: plan.gateways, controls, stores };
        let network = Network::create(&run.prefix(), shape)?;
        network.route_back(plan.return_route)?;
        if plan.dual_stack {
            network.add_ipv6()?;
        }
        let pki = Pki::init(&run.path().join("pki"))?;
        let operator = Operator::new(&network.controls, pki.issue("operator", "lab", &[])?);
        let etcd = match plan.store {
            Store::Embedded => None,
            Store::Etcd => Some(Etcd::start(&network.stores, run.path())?),
        };
        let store = match &etcd {
            None => StoreConfig::Embedded(run.path().join("control.redb")),
            Some(etcd) => StoreConfig::Etcd(etcd.endpoints().to_vec()),
        };
        let devices = (0..plan.devices).map(|_| None).collect();
        let mut cluster = Self {
            devices,
            gateways: Vec::new(),
            controls: Vec::new(),
            etcd,
            network,
            pki,
            operator,
            run,
            store,
            plan: plan.clone(),
        };
        for i in 0..controls {
            let control = cluster.start_control(i)?;
            cluster.controls.push(control);
        }
        for i in 0..plan.gateways {
            let gateway = cluster.start_gateway(i)?;
            cluster.gateways.push(gateway);
        }
        for i in 0..plan.devices {
            cluster.enrol(i)?;
        }
        Ok(cluster)
    }

    /// Starts control replica `i` and waits until it serves.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn start_control(&self, i: usize) -> Result<Process> {
        let host = &self.network.controls[i];
        let name = format!("ctl{}", i + 1);
        let identity = self.pki.issue("control", &name, &[host.wan.to_string()])?;
        let mut command = programs::control(
            &self.plan.builds.control,
            host,
            &name,
            &identity,
            &self.store,
            &self.plan.control_settings,
            self.run.path(),
        )?;
        if self.plan.dual_stack {
            command.arg("--set").arg(format!("pools={POOL},{POOL6}"));
            command.arg("--set").arg(format!("routes={LAN_NETWORK},{LAN6_NETWORK}"));
        }
        if self.plan.audit {
            command.arg("--set").arg(format!("audit.file={}", self.audit_file(&name).display()));
        }
        let process = Process::spawn(&name, command, self.run.path())?;
        process.wait_for("that it serves", Mark::default(), READY_MAX, |line| {
            line.contains(r#""message":"ready""#)
        })?;
        Ok(process)
    }

    /// Starts gateway `i` and waits until it is registered.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn start_gateway(&self, i: usize) -> Result<Process> {
        let host = &self.network.gateways[i];
        let name = gateway_name(i);
        let identity = self.pki.issue("gateway", &name, &[host.wan.to_string()])?;
        let build = self.plan.builds.gateways.get(i).cloned().unwrap_or_default();
        let mut command = programs::gateway(
            &build,
            host,
            &name,
            &identity,
            &self.network.controls,
            &self.plan.gateway_settings,
            self.run.path(),
        )?;
        if self.plan.dual_stack {
            let (v4, v6) = (host.wan_socket(GATEWAY_PORT), host.wan6_socket(GATEWAY_PORT));
            command.arg("--listen").arg(format!("[::]:{GATEWAY_PORT}"));
            command.arg("--advertise").arg(format!("{v4},{v6}"));
        }
        if self.plan.audit {
            command.arg("--audit-file").arg(self.audit_file(&name));
        }
        let process = Process::spawn(&name, command, self.run.path())?;
        process.wait_for("that it is ready", Mark::default(), READY_MAX, |line| {
            line.contains("registered; serving")
        })?;
        Ok(process)
    }

    /// Where the program of that name exports its audit events.
    fn audit_file(&self, name: &str) -> PathBuf {
        self.run.path().join(format!("{name}.audit.json"))
    }

    /// Every audit event that a program of the cluster exported so far, one a line.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn audit_trail(&self) -> Result<String> {
        let mut trail = String::new();
        for entry in std::fs::read_dir(self.run.path())? {
            let path = entry?.path();
            if path.to_str().is_some_and(|path| path.contains(".audit.json")) {
                trail.push_str(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?);
            }
        }
        Ok(trail)
    }

    /// Waits until a gateway has exported an audit event with this reason code.
    ///
    /// # Errors
    /// When none has in time.
    pub fn wait_for_audited(&self, reason: &str, timeout: Duration) -> Result<()> {
        let quoted = format!("\"{reason}\"");
        wait_until(&format!("an audit event tells of {reason}"), timeout, || {
            (0..self.gateways.len()).any(|i| {
                let exported = std::fs::read_to_string(self.audit_file(&gateway_name(i)));
                exported.is_ok_and(|exported| exported.contains(&quoted))
            })
        })
    }

    /// Enrols device `i` with a fresh one-time token.
    ///
    /// # Errors
    /// When enrolment fails.
    pub fn enrol(&self, i: usize) -> Result<()> {
        let host = &self.network.devices[i];
        let name = format!("device-{}", i + 1);
        let answer = self.operator.json(host, &["devices", "enroll-token", "--no-qr", &name])?;
        let token =
            answer.first().and_then(|a| a.get("token")?.as_str()).context("jumpctl printed no token")?;
        programs::enrol(&self.plan.builds.device, host, &self.state_dir(i), token)
    }

    /// Where device `i` keeps its state.
    pub fn state_dir(&self, i: usize) -> PathBuf {
        self.run.path().join(format!("device-{}", i + 1))
    }

    /// Brings device `i` up and waits until its session is attached; returns the session as operators see it.
    ///
    /// # Errors
    /// When it is not attached in time.
    pub fn up(&mut self, i: usize) -> Result<Ownership> {
        self.up_with(i, &[])
    }

    /// The same with more arguments to `jump up`.
    ///
    /// # Errors
    /// When it is not attached in time.
    pub fn up_with(&mut self, i: usize, arguments: &[&str]) -> Result<Ownership> {
        let host = &self.network.devices[i];
        let mut command = programs::device(&self.plan.builds.device, host, &self.state_dir(i))?;
        command.args(arguments);
        let process = Process::spawn(&format!("dev{}", i + 1), command, self.run.path())?;
        let (line, _) = process.wait_for("that it is attached", Mark::default(), READY_MAX, |line| {
            line.contains(r#""event":"attached""#)
        })?;
        self.devices[i] = Some(process);
        let event: serde_json::Value = serde_json::from_str(&line)?;
        let session =
            event.get("session_id").and_then(|s| s.as_str()).context("the event names no session")?;
        self.ownership(session)
    }

    /// What `jump status` says on device `i`.
    ///
    /// # Errors
    /// When the client does not answer.
    pub fn status(&self, i: usize) -> Result<serde_json::Value> {
        let state = self.state_dir(i);
        let arguments = ["--state-dir", &state.to_string_lossy(), "status", "--output", "json"];
        let status = programs::output(&self.network.devices[i], "jump", &arguments)?;
        serde_json::from_str(&status).context("the output of jump status")
    }

    /// The session id of device `i`, from `jump status`.
    ///
    /// # Errors
    /// When the device has no session.
    pub fn session_of(&self, i: usize) -> Result<String> {
        Ok(self
            .status(i)?
            .get("session_id")
            .and_then(|s| s.as_str())
            .context("jump status names no session")?
            .to_owned())
    }

    /// Who owns a session now.
    ///
    /// # Errors
    /// When control does not answer.
    pub fn ownership(&self, session: &str) -> Result<Ownership> {
        let answer = self.operator.json(self.operator_host(), &["ownership", "get", session])?;
        Ownership::from_json(answer.first().context("jumpctl printed nothing")?)
    }

    /// Waits until a gateway owns the session in a later epoch than `before`.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_owned_after(&self, before: &Ownership, timeout: Duration) -> Result<Ownership> {
        let mut last = None;
        wait_until("the session has an owner in a later epoch", timeout, || {
            last = self.ownership(&before.session).ok();
            last.as_ref().is_some_and(|now| now.epoch > before.epoch && now.phase == "OWNED")
        })?;
        last.context("control does not answer")
    }

    /// Kills the worker of the session's owner, and waits until the session has an owner again and the gateway is back.
    ///
    /// # Errors
    /// When one of both is not so in time.
    pub fn fail_over(&self, before: &Ownership, timeout: Duration) -> Result<Ownership> {
        let victim = self.gateway_number(before.owner.as_deref().context("the session has no owner")?)?;
        self.signal_worker(victim, Signal::KILL)?;
        let after = self.wait_owned_after(before, timeout)?;
        self.wait_registered(victim, timeout)?;
        Ok(after)
    }

    /// Follows a session's owner.
    ///
    /// # Errors
    /// When `jumpctl` is not built.
    pub fn watch_ownership(&self, session: &str) -> Result<OwnershipWatch> {
        let command = self
            .operator
            .command(self.operator_host(), &["--output", "json", "ownership", "watch", session])?;
        Ok(OwnershipWatch::new(Process::spawn("watch", command, self.run.path())?))
    }

    /// The number of the gateway of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn gateway_number(&self, node: &str) -> Result<usize> {
        let number = (0..self.gateways.len()).find(|i| gateway_name(*i) == node);
        number.with_context(|| format!("no gateway is named {node}"))
    }

    /// Waits until gateway `i` is registered at control.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_registered(&self, i: usize, timeout: Duration) -> Result<()> {
        wait_until(&format!("{} is registered", gateway_name(i)), timeout, || {
            let nodes = self.operator.json(self.operator_host(), &["nodes", "list"]).unwrap_or_default();
            nodes.iter().any(|node| node.get("node_id").and_then(|n| n.as_str()) == Some(&gateway_name(i)))
        })
    }

    /// The worker process of gateway `i`.
    ///
    /// # Errors
    /// When its supervisor has no worker.
    pub fn worker(&self, i: usize) -> Result<Pid> {
        self.gateways[i].only_child()
    }

    /// Writes other log levels into the settings of every control replica and gateway and has them read again.
    ///
    /// # Errors
    /// When a file cannot be written or a program has ended.
    pub fn set_log_levels(&self, levels: &str) -> Result<()> {
        for process in self.controls.iter().chain(&self.gateways) {
            let path = self.run.path().join(format!("{}.toml", process.name()));
            let settings = std::fs::read_to_string(&path)?;
            let mut settings: toml::Table = settings.parse()?;
            settings.insert(
                "log".to_owned(),
                toml::Table::from_iter([("level".to_owned(), levels.into())]).into(),
            );
            std::fs::write(&path, settings.to_string())?;
            let mark = process.mark();
            process.signal(Signal::HUP)?;
            process.wait_for("that its log levels have changed", mark, READY_MAX, |line| {
                line.contains("log levels changed by a signal")
            })?;
        }
        Ok(())
    }

    /// Sends a signal to the worker of gateway `i`, not to its supervisor.
    ///
    /// # Errors
    /// When there is no worker.
    pub fn signal_worker(&self, i: usize, signal: Signal) -> Result<()> {
        kill_process(self.worker(i)?, signal).context("signalling the worker")
    }

    /// Kills supervisor and worker of gateway `i` at once, as the loss of its machine would.
    ///
    /// # Errors
    /// When there is no worker.
    pub fn kill_gateway(&mut self, i: usize) -> Result<()> {
        let worker = self.worker(i)?;
        // The supervisor first: it must not live to see the worker die and report it.
        self.gateways[i].kill();
        let _ = kill_process(worker, Signal::KILL);
        Ok(())
    }

    /// Kills control replica `i`.
    ///
    /// # Errors
    /// When there is no such replica.
    pub fn kill_control(&mut self, i: usize) -> Result<()> {
        ensure!(i < self.controls.len(), "no control replica {i}");
        self.controls[i].kill();
        Ok(())
    }

    /// A host from which the operators' CLI reaches control: the last control replica's own.
    pub(crate) fn operator_host(&self) -> &Host {
        self.network.controls.last().unwrap_or(&self.network.inner)
    }
}

/// The node name of gateway `i`.
pub fn gateway_name(i: usize) -> String {
    format!("gw{}", i + 1)
}
