//! Binding the gateway's addresses: one listening socket for each worker, so that no connection is handed from
//! thread to thread. TCP sockets share their port by SO_REUSEPORT (socket(7)); a Unix socket is accepted from by
//! every worker.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Listen;

const BACKLOG: i32 = 4096;

/// One worker's sockets, bound and listening, not yet known to a runtime.
#[derive(Debug, Default)]
pub struct Listeners {
    /// TCP.
    pub tcp: Vec<std::net::TcpListener>,
    /// Unix.
    pub unix: Vec<std::os::unix::net::UnixListener>,
}

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct ListenError {
    address: Listen,
    source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop the program that uses it, or choose another address with --listen"
        }
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 or a path that this user may write",
        _ => "",
    }
}

/// Binds `addresses` for `workers` workers. Returns one [`Listeners`] each, and the addresses with real ports.
///
/// # Errors
/// The first address that cannot be bound.
pub fn bind(addresses: &[Listen], workers: usize) -> Result<(Vec<Listeners>, Vec<Listen>), ListenError> {
    let mut all: Vec<Listeners> = (0..workers).map(|_| Listeners::default()).collect();
    let mut bound = Vec::new();
    for address in addresses {
        let fail = |source| ListenError { address: address.clone(), source };
        match address {
            Listen::Tcp(tcp) => bound.push(Listen::Tcp(bind_tcp(*tcp, &mut all).map_err(fail)?)),
            Listen::Unix(path) => {
                bind_unix(path, &mut all).map_err(fail)?;
                bound.push(address.clone());
            }
        }
    }
    Ok((all, bound))
}

fn bind_tcp(address: SocketAddr, all: &mut [Listeners]) -> io::Result<SocketAddr> {
    // With SO_REUSEPORT a second gateway of the same user would silently take half of the connections; a first
    // socket without it fails where somebody listens already.
    drop(tcp_socket(address, false)?);
    let mut address = address;
    for listeners in all {
        let socket = tcp_socket(address, true)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener: std::net::TcpListener = socket.into();
        address = listener.local_addr()?;
        listeners.tcp.push(listener);
    }
    Ok(address)
}

fn tcp_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_unix(path: &Path, all: &mut [Listeners]) -> io::Result<()> {
    remove_stale(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    for listeners in all {
        listeners.unix.push(listener.try_clone()?);
    }
    Ok(())
}

/// A socket file that nobody listens on is what a killed gateway left behind.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

/// Removes the socket files of `addresses`.
pub fn unlink(addresses: &[Listen]) {
    let paths = addresses.iter().filter_map(|address| match address {
        Listen::Unix(path) => Some(path),
        Listen::Tcp(_) => None,
    });
    for path in paths.collect::<Vec<&PathBuf>>() {
        // A file that is already gone is what was wanted.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_listens_on_the_same_port() {
        let any = ["127.0.0.1:0".parse().unwrap()];
        let (all, bound) = bind(&any, 3).unwrap();
        let ports: Vec<_> = all.iter().map(|l| l.tcp[0].local_addr().unwrap()).collect();
        assert!(ports.iter().all(|p| Listen::Tcp(*p) == bound[0]));
    }

    #[test]
    fn a_used_port_is_refused() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Listen::Tcp(other.local_addr().unwrap());
        let error = bind(std::slice::from_ref(&address), 2).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    }

    #[test]
    fn a_second_gateway_on_a_port_is_refused() {
        let (_kept, bound) = bind(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        assert!(bind(&bound, 2).is_err());
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = [Listen::Unix(dir.path().join("s"))];
        let (kept, _) = bind(&address, 1).unwrap();
        assert!(bind(&address, 1).is_err());
        drop(kept);
        assert!(bind(&address, 1).is_ok());
    }
}
