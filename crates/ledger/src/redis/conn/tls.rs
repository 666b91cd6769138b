//! TLS to Redis and to its Sentinels. The server's name is always verified.
//!
//! The configuration is built for each connection, because its files may have been rotated; that costs a
//! millisecond, and connections are rare.

use std::sync::Arc;

use consentd_tls::ClientFiles;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::handshake::ConnectionError;
use super::url::Address;

/// Makes the TLS handshake over a connection to this address. The server's certificate must be for
/// `host`.
pub(crate) async fn over(
    files: &ClientFiles,
    stream: TcpStream,
    host: &str,
    address: &Address,
) -> Result<TlsStream<TcpStream>, ConnectionError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ConnectionError::InvalidServerName { address: address.clone() })?;
    let files = files.clone();
    let config = tokio::task::spawn_blocking(move || files.config()).await;
    let config = config.map_err(|panicked| ConnectionError::TlsPanic(panicked.to_string()))??;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|source| ConnectionError::Tls {
        address: address.clone(),
        source: Arc::new(source),
    })
}
