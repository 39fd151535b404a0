//! The kernel's table of flows, by netlink (linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::{IpAddr, SocketAddr};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddress};

use super::Flow;

const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4: (u16, u16) = (1, 2);
const CTA_IP_V6: (u16, u16) = (3, 4);
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_PORTS: (u16, u16) = (2, 3);

const HEADER: usize = 16;
const NFGENMSG: usize = 4;
const UDP: u8 = 17;
/// The kernel fills at most this much at once.
const BUFFER: usize = 64 << 10;

/// Deletes the UDP flows that `stale` picks; says how many.
pub fn forget(stale: impl Fn(Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let mut doomed = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        socket.send(&message(GET, NLM_F_REQUEST | NLM_F_DUMP, family, &[]), 0)?;
        answers(&socket, |body| {
            if let Some((flow, tuple)) = flow(body)
                && stale(flow)
            {
                doomed.push((family, tuple.to_vec()));
            }
        })?;
    }
    let mut count = 0;
    for (family, tuple) in doomed {
        let attribute = attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, &tuple);
        socket.send(&message(DELETE, NLM_F_REQUEST | NLM_F_ACK, family, &attribute), 0)?;
        match answers(&socket, |_| ()) {
            Ok(()) => count += 1,
            // It ended by itself meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + NFGENMSG + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: one request at a time, so the answer can be to no other.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len());
    bytes.extend(u16::try_from(4 + value.len()).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Hands each message's body to `on`, until the kernel says that it was the last.
fn answers(socket: &Socket, mut on: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some(length) = u32_at(rest, 0).map(|length| length as usize) {
            let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match u16_at(message, 4) {
                Some(NLMSG_DONE) => return Ok(()),
                Some(NLMSG_ERROR) => {
                    let code = u32_at(message, HEADER).unwrap_or_default().cast_signed();
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => on(message.get(HEADER + NFGENMSG..).unwrap_or_default()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The flow, and the tuple by which the kernel finds it; `None` for other protocols.
fn flow(body: &[u8]) -> Option<(Flow, &[u8])> {
    let original = find(body, CTA_TUPLE_ORIG)?;
    let (_, to) = ends(original)?;
    let (from, _) = ends(find(body, CTA_TUPLE_REPLY)?)?;
    Some((Flow { to, from }, original))
}

/// Source and destination of a tuple.
fn ends(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ip, protocol) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
    if find(protocol, CTA_PROTO_NUM)? != [UDP] {
        return None;
    }
    let v4 = |kind| find(ip, kind).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    let v6 = |kind| find(ip, kind).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from);
    let port = |kind| find(protocol, kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok()).map(u16::from_be_bytes);
    let source = v4(CTA_IP_V4.0).or_else(|| v6(CTA_IP_V6.0))?;
    let destination = v4(CTA_IP_V4.1).or_else(|| v6(CTA_IP_V6.1))?;
    Some((SocketAddr::new(source, port(CTA_PROTO_PORTS.0)?), SocketAddr::new(destination, port(CTA_PROTO_PORTS.1)?)))
}

/// The value of the first attribute of this type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
