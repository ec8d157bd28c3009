//! `jump-relay`: a UDP relay that loses, delays, reorders and duplicates what passes, from a seed.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use jump_tests::lab::relay::{Impairment, Relay};

/// Relays UDP between clients and one server and impairs both directions; prints its counters at the end.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where clients send.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where the relay sends their datagrams.
    #[arg(long, value_name = "ADDRESS")]
    server: SocketAddr,
    /// Probability that a datagram is dropped, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    loss: f64,
    /// Delay of every datagram, in milliseconds.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    delay: u64,
    /// Up to this much more delay, in milliseconds.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    jitter: u64,
    /// Probability that a datagram overtakes those before it.
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    reorder: f64,
    /// Probability that a datagram is sent twice.
    #[arg(long, default_value_t = 0.0, value_parser = probability)]
    duplicate: f64,
    /// At most so many bits per second and direction; 0 for no limit.
    #[arg(long, default_value_t = 0, value_name = "BITS")]
    rate: u64,
    /// Drops packets larger than this, headers included; 0 for no limit.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    mtu: usize,
    /// Gives every client a new port towards the server every so many seconds; 0 for never.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    rebind_every: u64,
    /// Stops after so many seconds.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    run_for: u64,
    /// The same seed and the same arrivals give the same decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let socket =
        UdpSocket::bind(arguments.listen).with_context(|| format!("listening on {}", arguments.listen))?;
    let rule = Impairment {
        loss: arguments.loss,
        delay: Duration::from_millis(arguments.delay),
        jitter: Duration::from_millis(arguments.jitter),
        reorder: arguments.reorder,
        duplicate: arguments.duplicate,
        rate_bits: arguments.rate,
        mtu: arguments.mtu,
        ..Impairment::default()
    };
    let relay = Relay::start(socket, arguments.server, rule, rule, arguments.seed)?;
    eprintln!("relaying {} to {}", relay.address(), arguments.server);
    let mut left = arguments.run_for;
    while left > 0 {
        let nap = if arguments.rebind_every == 0 { left } else { left.min(arguments.rebind_every) };
        std::thread::sleep(Duration::from_secs(nap));
        left -= nap;
        if arguments.rebind_every > 0 {
            relay.rebind();
        }
    }
    let counts = relay.counts();
    println!(
        "received {} sent {} dropped {} overflowed {}",
        counts.received, counts.sent, counts.dropped, counts.overflowed
    );
    Ok(())
}
