//! jump-control: the stateless gRPC service that arbitrates session ownership.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use jump_control::config::{Config, Layers, from_environment};
use jump_control::{pki, serve};
use jump_telemetry::log::LogConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Arbitrates who owns which VPN session.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves gateways, operators and devices until SIGTERM or SIGINT
    Serve(Box<Serve>),
    /// Checks this machine and the settings, and says what to do about each finding
    ///
    /// Changes nothing. Exit codes: 0 when there is no problem (warnings included), 1 otherwise.
    Doctor {
        #[command(flatten)]
        serve: Box<Serve>,
        /// Prints one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Makes a private certificate authority and certificates
    Pki(pki::PkiArgs),
}

/// Every setting can also stand in the file (as NAME = VALUE) and in the environment (as JUMP_CONTROL_NAME, with _ for each dot).
#[derive(Debug, Clone, Args)]
struct Serve {
    /// TOML file with settings
    #[arg(long, env = "JUMP_CONTROL_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port to listen on [default: 0.0.0.0:7443]
    #[arg(long)]
    listen: Option<String>,
    /// HOST:PORT under which devices reach control
    #[arg(long)]
    advertise: Option<String>,
    /// Server certificate (PEM)
    #[arg(long)]
    cert: Option<String>,
    /// Key of the server certificate (PEM)
    #[arg(long)]
    key: Option<String>,
    /// CA certificate of the cluster (PEM)
    #[arg(long)]
    ca: Option<String>,
    /// embedded:FILE or etcd:URL[,URL...]
    #[arg(long)]
    store: Option<String>,
    /// Inner address pools, comma-separated CIDR [default: 10.77.0.0/16]
    #[arg(long)]
    pools: Option<String>,
    /// Networks that clients send into the tunnel, comma-separated CIDR
    #[arg(long)]
    routes: Option<String>,
    /// Address and port of the Prometheus endpoint
    #[arg(long)]
    metrics_listen: Option<String>,
    /// Any other setting, for example --set lease.ttl=5s; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Lists every setting with its default and exits
    #[arg(long)]
    list_settings: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(serve) => run_serve(*serve),
        Command::Doctor { serve, json } => return doctor(*serve, json),
        Command::Pki(args) => pki::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Stderr that is gone cannot be told.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("jump-control: {error:#}\n").as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}

fn doctor(args: Serve, json: bool) -> ExitCode {
    let config = layers(args).map_err(|error| format!("{error:#}")).and_then(|layers| {
        Config::from_layers(layers).map_err(|errors| errors.to_string().replace('\n', "; "))
    });
    let report = jump_control::doctor::examine(config);
    let text = if json { report.to_json() + "\n" } else { report.to_text() };
    // A reader that is gone needs no report; the exit code says the rest.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    ExitCode::from(report.exit_code())
}

fn run_serve(args: Serve) -> anyhow::Result<()> {
    if args.list_settings {
        let mut out = String::new();
        for (name, default, about) in jump_control::config::SETTINGS {
            out.push_str(&format!(
                "{name:<32} {:<16} {about}\n",
                if *default == "-" { "(required)" } else { default }
            ));
        }
        std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
        return Ok(());
    }
    let again = args.clone();
    let config = Config::from_layers(layers(args)?)?;
    let log = LogConfig {
        format: config.log.format,
        filter: config.log.filter.clone(),
        component: "control".to_owned(),
        node: config.advertise.clone(),
    };
    let logs = jump_telemetry::log::init_with_traces(log, config.observability.trace.clone())?;
    let instance = jump_control::audit::instance(&config.advertise);
    let _audit = jump_telemetry::audit::init(instance, &config.observability.audit)
        .context("cannot start the audit sinks of [audit]")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let levels = move || {
            let layers = layers(again.clone()).map_err(|error| format!("{error:#}"))?;
            Ok(Config::from_layers(layers).map_err(|errors| errors.to_string())?.log.filter)
        };
        tokio::spawn(jump_telemetry::log::follow_signals(logs.handle(), Some(levels)));
        let token = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            tracing::info!("stopping");
            token.cancel();
        });
        serve(config, shutdown).await?;
        anyhow::Ok(())
    })
}

fn layers(args: Serve) -> anyhow::Result<Layers> {
    let file = match args.config {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read the settings in {}", path.display()))?;
            Some((path, text))
        }
        None => None,
    };
    let mut flags = BTreeMap::new();
    for setting in &args.settings {
        let (name, value) = setting
            .split_once('=')
            .with_context(|| format!("--set {setting:?} must be NAME=VALUE, for example lease.ttl=5s"))?;
        flags.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    if let Some(store) = args.store {
        let (kind, place) = store
            .split_once(':')
            .with_context(|| format!("--store {store:?} must be embedded:FILE or etcd:URL[,URL...]"))?;
        flags.insert("store.kind".to_owned(), kind.to_owned());
        let setting = if kind == "etcd" { "store.endpoints" } else { "store.path" };
        flags.insert(setting.to_owned(), place.to_owned());
    }
    let named = [
        ("listen", args.listen),
        ("advertise", args.advertise),
        ("tls.certificate", args.cert),
        ("tls.key", args.key),
        ("tls.ca", args.ca),
        ("pools", args.pools),
        ("routes", args.routes),
        ("metrics_listen", args.metrics_listen),
    ];
    flags.extend(named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Ok(Layers { file, environment: from_environment(std::env::vars()), flags })
}
