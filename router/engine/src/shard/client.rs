//! Client of the shard's rank 0: waits until it is loaded, reads its description, warms it up, and opens the stream
//! of steps.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gridwork_proto::PROTOCOL_VERSION;
use gridwork_proto::v1::shard_client::ShardClient;
use gridwork_proto::v1::{
    HealthRequest, InfoRequest, InfoResponse, Step, StepResult, Task, WarmupRequest,
    WarmupResponse, health_response,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::error::StartError;

/// Address at which a shard listens.
#[derive(Debug, Clone)]
pub enum ShardAddress {
    Unix(PathBuf),
    /// `host:port`
    Tcp(String),
}

impl std::str::FromStr for ShardAddress {
    type Err = String;

    /// Parses `host:port`, or else the path of a unix socket (which contains a `/`).
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an address is a socket path or host:port".into());
        }
        let port = text.rsplit_once(':').map(|(_, port)| port);
        match port {
            Some(port) if !text.contains('/') => match port.parse::<u16>() {
                Ok(_) => Ok(ShardAddress::Tcp(text.to_owned())),
                Err(_) => Err(format!("`{port}` is not a port")),
            },
            _ => Ok(ShardAddress::Unix(text.into())),
        }
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Maximum time to wait for the answer to a health request.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// A loaded and warmed-up shard with its stream of steps.
pub(crate) struct ReadyShard {
    pub info: InfoResponse,
    pub warmup: WarmupResponse,
    pub warmup_took: Duration,
    pub steps: mpsc::Sender<Step>,
    pub results: Streaming<StepResult>,
}

/// Waits until the shard is loaded, warms it up, and opens its stream of steps. `warmup` makes the warm-up request
/// from the shard's description.
pub(crate) async fn connect(
    address: &ShardAddress,
    timeout: Duration,
    warmup: impl FnOnce(&InfoResponse) -> Result<WarmupRequest, StartError>,
) -> Result<ReadyShard, StartError> {
    let (mut client, info) = find(address, timeout).await?;
    if !generates(&info) {
        return Err(StartError::OtherTask { task: info.task() });
    }
    let began = Instant::now();
    let warmup = tokio::time::timeout(timeout, client.warmup(warmup(&info)?))
        .await
        .map_err(|_| StartError::Silent {
            seconds: timeout.as_secs(),
        })?
        .map_err(refused)?
        .into_inner();
    let warmup_took = began.elapsed();
    let (steps, outgoing) = mpsc::channel(4);
    let results = client
        .run(ReceiverStream::new(outgoing))
        .await
        .map_err(refused)?
        .into_inner();
    Ok(ReadyShard {
        info,
        warmup,
        warmup_took,
        steps,
        results,
    })
}

/// Waits until the shard is loaded, and reads its description.
pub(crate) async fn find(
    address: &ShardAddress,
    timeout: Duration,
) -> Result<(ShardClient<Channel>, InfoResponse), StartError> {
    let mut client = wait_until_loaded(address, timeout).await?;
    let info = client
        .info(InfoRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    if info.protocol_version != PROTOCOL_VERSION {
        return Err(StartError::Version {
            shard: info.protocol_version,
            router: PROTOCOL_VERSION,
        });
    }
    Ok((client, info))
}

/// True if the shard generates, in steps, rather than encodes, in batches.
pub(crate) fn generates(info: &InfoResponse) -> bool {
    matches!(info.task(), Task::Unspecified | Task::Generate)
}

fn refused(status: tonic::Status) -> StartError {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument => {
            StartError::Shard(status.message().to_owned())
        }
        code => StartError::Lost(format!("{code:?}: {}", status.message())),
    }
}

async fn wait_until_loaded(
    address: &ShardAddress,
    timeout: Duration,
) -> Result<ShardClient<Channel>, StartError> {
    let started = Instant::now();
    let mut state = "it does not listen yet".to_owned();
    while started.elapsed() < timeout {
        match open(address).await {
            Ok(mut client) => match health(&mut client).await {
                Ok((health_response::State::Ready, _)) => return Ok(client),
                Ok((health_response::State::Failed, message)) => {
                    return Err(StartError::Shard(message));
                }
                Ok((_, message)) => {
                    if message != state {
                        tracing::debug!("waiting for the shard: {message}");
                    }
                    state = message;
                }
                Err(status) => state = status.message().to_owned(),
            },
            Err(error) => tracing::trace!("the shard cannot be reached: {error}"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Err(StartError::Timeout {
        seconds: timeout.as_secs(),
        state,
    })
}

async fn health(
    client: &mut ShardClient<Channel>,
) -> Result<(health_response::State, String), tonic::Status> {
    let response = tokio::time::timeout(HEALTH_TIMEOUT, client.health(HealthRequest {}))
        .await
        .map_err(|_| {
            tonic::Status::deadline_exceeded("it accepts connections but does not answer")
        })??
        .into_inner();
    Ok((response.state(), response.message))
}

async fn open(address: &ShardAddress) -> Result<ShardClient<Channel>, tonic::transport::Error> {
    Ok(ShardClient::new(channel(address).await?)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX))
}

/// Connects to the shard at `address`.
pub(crate) async fn channel(address: &ShardAddress) -> Result<Channel, tonic::transport::Error> {
    match address {
        ShardAddress::Tcp(address) => {
            Endpoint::from_shared(format!("http://{address}"))?
                .tcp_nodelay(true)
                .connect()
                .await
        }
        ShardAddress::Unix(path) => {
            let path = path.clone();
            // The endpoint's own address is not used: the connector below always opens the socket.
            Endpoint::from_static("http://shard")
                .connect_with_connector(service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
                .await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_tcp_addresses_are_distinguished() {
        assert!(matches!(
            "/run/gridwork/shard-0".parse(),
            Ok(ShardAddress::Unix(_))
        ));
        assert!(matches!("localhost:8033".parse(), Ok(ShardAddress::Tcp(_))));
        assert!("localhost:http".parse::<ShardAddress>().is_err());
        assert!("".parse::<ShardAddress>().is_err());
    }
}
