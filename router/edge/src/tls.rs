//! TLS: the server's certificate and key, their changes, and the check of health over TLS.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::file::{self, FileError};

/// Flag that gives the certificate.
pub const CERT_FLAG: &str = "--tls-cert";
/// Flag that gives the private key.
pub const KEY_FLAG: &str = "--tls-key";

/// Where certificate and key lie, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those that it was signed with, without the root.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Certificate and key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{CERT_FLAG} {} has no certificate: it takes PEM, which begins with -----BEGIN CERTIFICATE-----, the server's own \
         certificate first", .0.display()
    )]
    NoCertificate(PathBuf),
    #[error("{CERT_FLAG} {} cannot be used: {fault}", .path.display())]
    BadCertificate { path: PathBuf, fault: String },
    #[error(
        "{KEY_FLAG} {} has no private key: it takes PEM without a password, which begins with -----BEGIN PRIVATE KEY-----",
        .0.display()
    )]
    NoKey(PathBuf),
    #[error(
        "{KEY_FLAG} {} is encrypted, and there is no way to give its password; decrypt it with \
         `openssl pkey -in {} -out plain.pem`", .0.display(), .0.display()
    )]
    EncryptedKey(PathBuf),
    #[error("{KEY_FLAG} {} cannot be used: {fault}", .path.display())]
    BadKey { path: PathBuf, fault: String },
    #[error(
        "{KEY_FLAG} {} does not belong to the first certificate of {CERT_FLAG} {}; the server's own certificate must stand \
         first", .0.key.display(), .0.cert.display()
    )]
    Mismatch(TlsFiles),
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// Time after which clients refuse the certificate.
    pub not_after: SystemTime,
}

impl TlsFiles {
    /// Texts of the two files; an error stands for itself.
    pub fn contents(&self) -> Result<(String, String), FileError> {
        Ok((
            file::read(CERT_FLAG, &self.cert)?,
            file::read_secret(KEY_FLAG, &self.key)?,
        ))
    }

    /// Reads and checks both.
    pub fn identity(&self) -> Result<Identity, TlsError> {
        let (cert, key) = self.contents()?;
        let bad_certificate = |fault: String| TlsError::BadCertificate {
            path: self.cert.clone(),
            fault,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| bad_certificate(error.to_string()))?;
        let Some(own) = chain.first() else {
            return Err(TlsError::NoCertificate(self.cert.clone()));
        };
        let not_after = not_after(own).map_err(|error| bad_certificate(error.to_string()))?;
        let key = self.private_key(&key)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch(self.clone())
            }
            Error::InvalidCertificate(_) => bad_certificate(error.to_string()),
            _ => TlsError::BadKey {
                path: self.key.clone(),
                fault: error.to_string(),
            },
        })?;
        Ok(Identity {
            key: Arc::new(key),
            not_after,
        })
    }

    fn private_key(&self, text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
        use rustls::pki_types::pem::Error as PemError;
        let is_encrypted =
            text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED");
        if is_encrypted {
            return Err(TlsError::EncryptedKey(self.key.clone()));
        }
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
            PemError::NoItemsFound => TlsError::NoKey(self.key.clone()),
            error => TlsError::BadKey {
                path: self.key.clone(),
                fault: error.to_string(),
            },
        })
    }
}

/// Time after which a certificate is no longer valid.
fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, x509_cert::der::Error> {
    let certificate = Certificate::from_der(certificate)?;
    let end = certificate.tbs_certificate().validity().not_after;
    Ok(SystemTime::UNIX_EPOCH + end.to_unix_duration())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The identity that new connections are served with. It can be replaced at any time; connections keep theirs.
#[derive(Debug)]
pub struct CurrentIdentity(RwLock<Identity>);

impl CurrentIdentity {
    pub fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self(RwLock::new(identity)))
    }

    pub fn replace(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    pub fn not_after(&self) -> SystemTime {
        self.read().not_after
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Identity> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Configuration of a server for HTTP/1.1 and HTTP/2 with this identity.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for CurrentIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read().key.clone())
    }
}

/// Takes up the files' changes for ever. A change that cannot be used leaves the identity as it is; `told` gets either
/// result.
pub async fn follow(
    current: Arc<CurrentIdentity>,
    files: TlsFiles,
    mut told: impl FnMut(Result<&Identity, TlsError>),
) {
    let look = {
        let files = files.clone();
        move || files.contents().map_err(|error| error.to_string())
    };
    let first = look();
    file::watch(first, look, |_| match files.identity() {
        Ok(identity) => {
            told(Ok(&identity));
            current.replace(identity);
        }
        Err(error) => told(Err(error)),
    })
    .await;
}

/// Encrypts a connection to a server on this machine whose certificate is not checked: for its health alone, which needs
/// no secret and is asked by an address that no certificate names.
pub async fn connect_unchecked<S>(stream: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// Accepts every certificate, and checks that the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Time until `not_after`; zero when it has passed.
pub fn time_left(not_after: SystemTime) -> Duration {
    not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default()
}

/// Files as the flags give them; `None` without TLS.
pub fn files(cert: Option<&Path>, key: Option<&Path>) -> Option<TlsFiles> {
    Some(TlsFiles {
        cert: cert?.to_owned(),
        key: key?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// Writes a new certificate and its key into a folder.
    fn write(folder: &Path) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap();
        let files = TlsFiles {
            cert: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        };
        fs::write(&files.cert, cert.pem()).unwrap();
        write_key(&files.key, &key.serialize_pem());
        files
    }

    fn write_key(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn refusal(files: &TlsFiles) -> String {
        files.identity().unwrap_err().to_string()
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let files = write(one.path());
        assert!(files.identity().unwrap().not_after > SystemTime::now());
        let mixed = TlsFiles {
            key: write(other.path()).key,
            ..files
        };
        assert!(refusal(&mixed).contains("does not belong to the first certificate"));
    }

    #[test]
    fn each_fault_is_named_with_its_file() {
        let folder = TempDir::new().unwrap();
        let files = write(folder.path());
        let cert = fs::read_to_string(&files.cert).unwrap();
        let key = fs::read_to_string(&files.key).unwrap();
        for (text, part) in [
            ("", "has no certificate"),
            (key.as_str(), "has no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "cannot be used",
            ),
            (&cert[..cert.len() / 2], "cannot be used"),
        ] {
            fs::write(&files.cert, text).unwrap();
            let message = refusal(&files);
            assert!(message.contains(part), "{message}");
            assert!(message.starts_with("--tls-cert /"), "{message}");
        }
        fs::write(&files.cert, &cert).unwrap();
        for (text, part) in [
            ("", "has no private key"),
            (cert.as_str(), "has no private key"),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "is encrypted",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "cannot be used",
            ),
        ] {
            write_key(&files.key, text);
            let message = refusal(&files);
            assert!(message.contains(part), "{message}");
            assert!(message.starts_with("--tls-key /"), "{message}");
        }
        write_key(&files.key, &key);
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal(&files).contains("rights"));
    }

    /// Certificate that a new connection gets.
    async fn served(current: &Arc<CurrentIdentity>) -> Vec<u8> {
        let acceptor = tokio_rustls::TlsAcceptor::from(current.server_config().unwrap());
        let (client, server) = tokio::io::duplex(1 << 16);
        let (client, server) = tokio::join!(connect_unchecked(client), acceptor.accept(server));
        drop(server.unwrap());
        let (_, session) = client.as_ref().unwrap().get_ref();
        session.peer_certificates().unwrap()[0].to_vec()
    }

    #[tokio::test]
    async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
        let folder = TempDir::new().unwrap();
        let files = write(folder.path());
        let current = CurrentIdentity::new(files.identity().unwrap());
        let old = served(&current).await;
        let (send, mut told) = tokio::sync::mpsc::unbounded_channel();
        let following = tokio::spawn(follow(current.clone(), files.clone(), move |result| {
            let _ = send.send(result.map(|_| ()).map_err(|error| error.to_string()));
        }));
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::write(&files.cert, "nothing").unwrap();
        let fault = told.recv().await.unwrap().unwrap_err();
        assert!(fault.contains("has no certificate"), "{fault}");
        assert_eq!(served(&current).await, old);
        // The key first: an operator cannot replace both at once.
        write(folder.path());
        while told.recv().await.unwrap().is_err() {}
        assert_ne!(served(&current).await, old);
        following.abort();
    }

    #[test]
    fn an_ended_certificate_has_no_time_left() {
        assert_eq!(time_left(SystemTime::UNIX_EPOCH), Duration::ZERO);
        assert_eq!(files(Some(Path::new("/c")), None), None);
    }
}
