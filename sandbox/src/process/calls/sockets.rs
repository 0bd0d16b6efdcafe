//! Sockets: only connected local pairs (socketpair(2)). A sandbox has no network, and says so with `EAFNOSUPPORT`.

use rustix::io::Errno;

use super::guest::{Guest, fd};
use super::pipes::hand_out;
use super::{Args, Entry, Outcome};
use crate::process::Process;
use crate::process::files::SocketKind;
use crate::process::memory::{Buffer, MAX_TRANSFER};

pub(super) const CALLS: &[Entry] = &[
    (libc::SYS_socket, |_, _| Err(Errno::AFNOSUPPORT)),
    (libc::SYS_socketpair, socketpair),
    (libc::SYS_connect, |p, [n, ..]| connected(p, n, Errno::ISCONN)),
    (libc::SYS_bind, |p, [n, ..]| connected(p, n, Errno::INVAL)),
    (libc::SYS_listen, |p, [n, ..]| connected(p, n, Errno::INVAL)),
    (libc::SYS_accept, |p, [n, ..]| connected(p, n, Errno::INVAL)),
    (libc::SYS_accept4, |p, [n, ..]| connected(p, n, Errno::INVAL)),
    (libc::SYS_shutdown, shutdown),
    (libc::SYS_getsockname, name),
    (libc::SYS_getpeername, name),
    (libc::SYS_getsockopt, getsockopt),
    (libc::SYS_setsockopt, setsockopt),
    (libc::SYS_sendto, sendto),
    (libc::SYS_recvfrom, recvfrom),
    (libc::SYS_sendmsg, sendmsg),
    (libc::SYS_recvmsg, recvmsg),
];

fn socketpair(process: &mut Process, [family, kind, protocol, into, ..]: Args) -> Result<Outcome, Errno> {
    let kind = kind as i32;
    if family as i32 != libc::AF_UNIX {
        return Err(Errno::AFNOSUPPORT);
    }
    if !matches!(protocol as i32, 0 | libc::PF_UNIX) {
        return Err(Errno::PROTONOSUPPORT);
    }
    if kind & !(0xf | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    let of = match kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) {
        libc::SOCK_STREAM => SocketKind::Stream,
        libc::SOCK_DGRAM | libc::SOCK_RAW => SocketKind::Datagram,
        libc::SOCK_SEQPACKET => SocketKind::Packets,
        _ => return Err(Errno::SOCKTNOSUPPORT),
    };
    let (nonblocking, cloexec) = (kind & libc::SOCK_NONBLOCK != 0, kind & libc::SOCK_CLOEXEC != 0);
    let ends = process.files.make_socket_pair(of, nonblocking, cloexec)?;
    hand_out(process, ends, into)
}

/// What makes no sense on a socket that is connected from birth.
fn connected(process: &mut Process, n: u64, e: Errno) -> Result<Outcome, Errno> {
    process.files.socket_kind(fd(n))?;
    Err(e)
}

fn shutdown(process: &mut Process, [n, how, ..]: Args) -> Result<Outcome, Errno> {
    let done = process.files.shut_down(fd(n), how as i32);
    process.done(done)
}

/// Both ends have no name: the address is the family alone.
fn name(process: &mut Process, [n, into, length, ..]: Args) -> Result<Outcome, Errno> {
    process.files.socket_kind(fd(n))?;
    let room: i32 = process.memory.get(length)?;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    let family = (libc::AF_UNIX as u16).to_le_bytes();
    process.memory.write(into, &family[..room.min(2)])?;
    process.memory.put(length, &2_i32)?;
    Ok(Outcome::ZERO)
}

const BUFFER_BYTES: i32 = 208 << 10;

fn getsockopt(process: &mut Process, [n, level, option, into, length, _]: Args) -> Result<Outcome, Errno> {
    let kind = process.files.socket_kind(fd(n))?;
    let room: i32 = process.memory.get(length)?;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    if level as i32 != libc::SOL_SOCKET {
        return Err(Errno::OPNOTSUPP);
    }
    let values: &[i32] = match option as i32 {
        libc::SO_TYPE => &[kind.raw()],
        libc::SO_DOMAIN => &[libc::AF_UNIX],
        libc::SO_SNDBUF | libc::SO_RCVBUF => &[BUFFER_BYTES],
        libc::SO_ERROR
        | libc::SO_PROTOCOL
        | libc::SO_ACCEPTCONN
        | libc::SO_KEEPALIVE
        | libc::SO_REUSEADDR => &[0],
        libc::SO_PEERCRED => &[1, 0, 0],
        libc::SO_LINGER => &[0, 0],
        _ => return Err(Errno::NOPROTOOPT),
    };
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let n = bytes.len().min(room);
    process.memory.write(into, &bytes[..n])?;
    process.memory.put(length, &(n as i32))?;
    Ok(Outcome::ZERO)
}

/// Sizes and the like are hints here.
fn setsockopt(process: &mut Process, [n, level, option, ..]: Args) -> Result<Outcome, Errno> {
    process.files.socket_kind(fd(n))?;
    let known = [
        libc::SO_SNDBUF,
        libc::SO_RCVBUF,
        libc::SO_KEEPALIVE,
        libc::SO_REUSEADDR,
        libc::SO_LINGER,
        libc::SO_PRIORITY,
    ];
    if level as i32 != libc::SOL_SOCKET {
        return Err(Errno::OPNOTSUPP);
    }
    if known.contains(&(option as i32)) { Ok(Outcome::ZERO) } else { Err(Errno::NOPROTOOPT) }
}

fn send(process: &mut Process, n: u64, buffers: Vec<Buffer>, flags: i32) -> Result<Outcome, Errno> {
    let (nonblocking, signals) = (flags & libc::MSG_DONTWAIT != 0, flags & libc::MSG_NOSIGNAL == 0);
    process.write_all(fd(n), buffers, signals, |files, guest| files.send(fd(n), guest, nonblocking))
}

fn sendto(process: &mut Process, [n, address, len, flags, to, _]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    process.files.socket_kind(fd(n))?;
    if to != 0 {
        return Err(Errno::ISCONN);
    }
    let buffers = vec![Buffer { address, len: len.min(MAX_TRANSFER) }];
    send(process, n, buffers, flags)
}

fn recvfrom(process: &mut Process, [n, address, len, flags, from, length]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    process.files.socket_kind(fd(n))?;
    let mut guest = Guest::one(&process.memory, address, len);
    let (wait, peek) = (flags & libc::MSG_DONTWAIT != 0, flags & libc::MSG_PEEK != 0);
    let done = process.files.receive(fd(n), &mut guest, wait, peek);
    if done.is_ok() && from != 0 {
        process.memory.put_if(length, &0_i32)?;
    }
    let whole = flags & libc::MSG_TRUNC != 0;
    process.filed(done.map(|message| if whole { message.length } else { message.copied } as u64))
}

/// `struct msghdr`: name, its length, buffers, their number, control, its length, flags; 56 bytes.
struct Header {
    address: u64,
    buffers: u64,
    count: u64,
    control_bytes: u64,
    has_name: bool,
}

fn header(process: &Process, address: u64) -> Result<Header, Errno> {
    let raw: [u64; 7] = process.memory.get(address)?;
    let control_bytes = if raw[4] == 0 { 0 } else { raw[5] };
    Ok(Header { address, buffers: raw[2], count: raw[3], control_bytes, has_name: raw[0] != 0 })
}

fn sendmsg(process: &mut Process, [n, message, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    process.files.socket_kind(fd(n))?;
    let header = header(process, message)?;
    if header.has_name {
        return Err(Errno::ISCONN);
    }
    if header.control_bytes > 0 {
        // Descriptors and credentials are not passed.
        return Err(Errno::OPNOTSUPP);
    }
    let buffers = process.memory.iovecs(header.buffers, header.count)?;
    send(process, n, buffers, flags)
}

fn recvmsg(process: &mut Process, [n, message, flags, ..]: Args) -> Result<Outcome, Errno> {
    let flags = flags as i32;
    process.files.socket_kind(fd(n))?;
    let header = header(process, message)?;
    let buffers = process.memory.iovecs(header.buffers, header.count)?;
    let mut guest = Guest::new(&process.memory, buffers);
    let (wait, peek) = (flags & libc::MSG_DONTWAIT != 0, flags & libc::MSG_PEEK != 0);
    let done = process.files.receive(fd(n), &mut guest, wait, peek);
    if let Ok(message) = done {
        let cut = message.length > message.copied;
        process.memory.put(header.address + 8, &0_i32)?;
        process.memory.put(header.address + 40, &0_u64)?;
        process.memory.put(header.address + 48, &(if cut { libc::MSG_TRUNC } else { 0 }))?;
    }
    let whole = flags & libc::MSG_TRUNC != 0;
    process.filed(done.map(|message| if whole { message.length } else { message.copied } as u64))
}
