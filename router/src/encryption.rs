//! TLS of the port for clients: its certificate, and the certificate's changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gridwork_edge::tls::{self, CurrentIdentity, TlsFiles};

use crate::RouterError;
use crate::connections::Listener;
use crate::observability::metrics;

/// Time before its end at which a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The socket with TLS. Changes of the files are taken up as long as the process runs.
pub fn encrypted(listener: Listener, files: TlsFiles) -> Result<Listener, RouterError> {
    let identity = files.identity()?;
    note(identity.not_after);
    let current = CurrentIdentity::new(identity);
    let config = current
        .server_config()
        .map_err(|error| RouterError::Internal(format!("TLS cannot be set up: {error}")))?;
    tokio::spawn(tls::follow(current, files, |result| match result {
        Ok(identity) => {
            tracing::info!("new connections get the certificate that was put in place");
            note(identity.not_after);
        }
        Err(error) => tracing::warn!("connections keep the certificate that they had: {error}"),
    }));
    Ok(listener.encrypted(config))
}

/// Tells when a certificate ends.
fn note(not_after: SystemTime) {
    let end = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics::certificate_end().set(end.as_secs_f64());
    let left = tls::time_left(not_after);
    if left.is_zero() {
        tracing::warn!("the certificate of --tls-cert has ended: clients refuse it");
    } else if left < SOON {
        let days = left.as_secs() / (24 * 60 * 60);
        tracing::warn!("the certificate of --tls-cert ends in {days} days");
    }
}
