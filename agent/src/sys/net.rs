//! The network card, by the ioctls of netdevice(7) and the route's of Linux's include/uapi/linux/route.h.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use novum_proto::guest::v1::Network;

use super::check;

/// What the kernel calls a guest's only card.
const CARD: &[u8] = b"eth0";
/// `ARPHRD_ETHER` of if_arp.h.
const ETHERNET: u16 = 1;

/// Switches the card off, gives it its addresses, and switches it on. An address of before is gone then.
pub(crate) fn configure(network: &Network) -> io::Result<()> {
    let impossible =
        |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is impossible"));
    let mac = <[u8; 6]>::try_from(network.mac.as_slice()).map_err(|_| impossible("the card's address"))?;
    let address = ipv4(&network.address).ok_or_else(|| impossible("the address"))?;
    let gateway = ipv4(&network.gateway).ok_or_else(|| impossible("the gateway"))?;
    let mask = match network.prefix {
        0 => 0,
        prefix @ 1..=32 => u32::MAX << (32 - prefix),
        _ => return Err(impossible("the prefix")),
    };
    let socket = Socket::open()?;
    socket.change(libc::SIOCSIFFLAGS, |_| ())?;
    socket.change(libc::SIOCSIFHWADDR, |request| {
        let mut hardware = libc::sockaddr { sa_family: ETHERNET, sa_data: [0; 14] };
        hardware.sa_data.iter_mut().zip(mac).for_each(|(to, byte)| *to = byte as libc::c_char);
        request.ifr_ifru.ifru_hwaddr = hardware;
    })?;
    // The address 0.0.0.0 takes the one of before away.
    let removed = socket.change(libc::SIOCSIFADDR, |request| request.ifr_ifru.ifru_addr = inet(address));
    if address != [0; 4] {
        removed?;
        let mask = mask.to_be_bytes();
        socket.change(libc::SIOCSIFNETMASK, |request| request.ifr_ifru.ifru_netmask = inet(mask))?;
    }
    socket.change(libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = libc::IFF_UP as i16)?;
    if gateway == [0; 4] { Ok(()) } else { socket.add_default_route(gateway) }
}

/// Four bytes, or none for none.
fn ipv4(bytes: &[u8]) -> Option<[u8; 4]> {
    if bytes.is_empty() { Some([0; 4]) } else { bytes.try_into().ok() }
}

/// An address as these calls take it: sockaddr_in in the room of any.
fn inet([a, b, c, d]: [u8; 4]) -> libc::sockaddr {
    let mut address = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: [0; 14] };
    // Behind two bytes of port.
    address.sa_data[2..6].copy_from_slice(&[a, b, c, d].map(|byte| byte as libc::c_char));
    address
}

/// What these calls are made on.
struct Socket(OwnedFd);

impl Socket {
    fn open() -> io::Result<Self> {
        // SAFETY: plain numbers; the result is a new descriptor or an error.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        let fd = check(fd.into())?;
        // SAFETY: it was just opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// One change of the card.
    fn change(&self, what: libc::c_ulong, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<()> {
        // SAFETY: zeroes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(CARD).for_each(|(to, byte)| *to = *byte as libc::c_char);
        fill(&mut request);
        // SAFETY: `request` is initialised, and what these calls take.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), what as _, &raw const request) }.into()).map(drop)
    }

    fn add_default_route(&self, gateway: [u8; 4]) -> io::Result<()> {
        // SAFETY: zeroes are a valid rtentry: no name of a device.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        (route.rt_dst, route.rt_genmask) = (inet([0; 4]), inet([0; 4]));
        route.rt_gateway = inet(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: `route` is initialised.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) }.into())
            .map(drop)
    }
}
