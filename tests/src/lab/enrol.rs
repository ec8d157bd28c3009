//! Enrols many devices that are nothing but a key, over one connection to control.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jump_crypto::entropy::OsEntropy;
use jump_crypto::keys::DeviceSecret;
use jump_proto::control_v1::EnrolDeviceRequest;
use jump_proto::control_v1::device_service_client::DeviceServiceClient;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity};

use super::network::Host;
use super::programs::{CONTROL_PORT, Identity};

/// Requests under way at once.
const AT_ONCE: usize = 64;
/// Tries per device: control may be starting, or losing its leader.
const TRIES_MAX: usize = 20;

/// Makes and enrols `count` devices; `progress` is told how many are done.
///
/// # Errors
/// When control refuses one, or cannot be reached.
pub fn enrol(
    control: &Host,
    identity: &Identity,
    count: usize,
    progress: impl Fn(usize) + Send + Sync,
) -> Result<Vec<DeviceSecret>> {
    let mut entropy = OsEntropy::new().context("randomness")?;
    let keys: Vec<_> = (0..count)
        .map(|_| DeviceSecret::generate(&mut entropy).context("a device key"))
        .collect::<Result<_>>()?;
    let public: Vec<_> = keys.iter().map(|key| key.public().to_string()).collect();
    let wan = control.wan;
    control
        .namespace
        .enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let channel = connect(wan, identity).await?;
                let mut under_way = JoinSet::new();
                let mut done = 0;
                for (i, key) in public.into_iter().enumerate() {
                    if under_way.len() >= AT_ONCE
                        && let Some(result) = under_way.join_next().await
                    {
                        result??;
                        done += 1;
                        progress(done);
                    }
                    under_way.spawn(enrol_one(channel.clone(), key, i));
                }
                while let Some(result) = under_way.join_next().await {
                    result??;
                    done += 1;
                    progress(done);
                }
                Ok(())
            })
        })?
        .map(|()| keys)
}

async fn enrol_one(channel: Channel, device_key: String, i: usize) -> Result<()> {
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let request = EnrolDeviceRequest {
            device_key: device_key.clone(),
            name: format!("virtual-{i}"),
            not_after: None,
            request_id: uuid::Uuid::new_v4().to_string(),
            policy: None,
        };
        match DeviceServiceClient::new(channel.clone()).enrol_device(request).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => return Ok(()),
            Err(status) => last = Some(status),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    bail!("enrolling virtual device {i}: {last:?}")
}

/// A connection to a control replica, from inside a namespace that reaches it.
///
/// # Errors
/// When it does not answer or its certificate is not trusted.
pub async fn connect(control: Ipv4Addr, identity: &Identity) -> Result<Channel> {
    let read =
        |path: &std::path::Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&identity.ca)?))
        .identity(TlsIdentity::from_pem(read(&identity.certificate)?, read(&identity.key)?))
        .domain_name(control.to_string());
    Endpoint::from_shared(format!("https://{control}:{CONTROL_PORT}"))?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(5))
        .connect()
        .await
        .context("connecting to control")
}
