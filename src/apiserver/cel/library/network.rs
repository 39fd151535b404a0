//! `ip("…")` and `cidr("…")`.

use std::net::IpAddr;

use mussel_api::names;
use mussel_cel::Type::{self, Bool, Int, String as Text};
use mussel_cel::{Env, EvalError, Run, Value, global, member};

use super::{opaque, own, text};

const IP: &str = "net.IP";
const CIDR: &str = "net.CIDR";

#[derive(Debug, PartialEq)]
struct Ip(IpAddr);
opaque!(Ip, IP);

#[derive(Debug, PartialEq)]
struct Cidr {
    address: IpAddr,
    length: u8,
}
opaque!(Cidr, CIDR);

impl Cidr {
    fn contains(&self, ip: IpAddr) -> bool {
        match (masked(self.address, self.length), masked(ip, self.length)) {
            (IpAddr::V4(a), IpAddr::V4(b)) => a == b,
            (IpAddr::V6(a), IpAddr::V6(b)) => a == b,
            _ => false,
        }
    }
}

fn masked(ip: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match ip {
        IpAddr::V4(ip) => {
            IpAddr::V4((u32::from(ip) & u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0)).into())
        }
        IpAddr::V6(ip) => {
            IpAddr::V6((u128::from(ip) & u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0)).into())
        }
    }
}

/// No zones, and no IPv4 address in IPv6 clothes.
fn parse_ip(text: &str) -> Result<IpAddr, EvalError> {
    let ip: IpAddr = text.parse().map_err(|_| {
        EvalError::other(format!("IP Address {text:?} parse error during conversion from string: unable to parse IP"))
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(EvalError::other(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, EvalError> {
    let bad = || EvalError::other(format!("network address parse error during conversion from string: {text:?}"));
    let (address, length) = names::parse_cidr(text).ok_or_else(bad)?;
    parse_ip(&address.to_string())?;
    Ok(Cidr { address, length })
}

/// An address as itself or as text.
fn ip(value: &Value) -> Result<IpAddr, EvalError> {
    match value {
        Value::String(text) => parse_ip(text),
        value => Ok(own::<Ip>(value)?.0),
    }
}

pub fn declare(env: &mut Env) {
    let (ip_type, cidr_type) = (Type::opaque(IP), Type::opaque(CIDR));
    env.function(
        "ip",
        vec![
            global([Text], ip_type.clone(), |args, _| Ok(Value::opaque(Ip(parse_ip(text(&args[0])?)?)))),
            member([cidr_type.clone()], ip_type.clone(), |args, _| {
                Ok(Value::opaque(Ip(own::<Cidr>(&args[0])?.address)))
            }),
        ],
    );
    env.function("isIP", vec![global([Text], Bool, |args, _| Ok(parse_ip(text(&args[0])?).is_ok().into()))]);
    env.function(
        "ip.isCanonical",
        vec![global([Text], Bool, |args, _| {
            let text = text(&args[0])?;
            Ok((parse_ip(text)?.to_string() == text).into())
        })],
    );
    env.function(
        "cidr",
        vec![global([Text], cidr_type.clone(), |args, _| Ok(Value::opaque(parse_cidr(text(&args[0])?)?)))],
    );
    env.function("isCIDR", vec![global([Text], Bool, |args, _| Ok(parse_cidr(text(&args[0])?).is_ok().into()))]);
    let mut of_ip = |name: &str, result: Type, run: Run| {
        env.function(name, vec![member([ip_type.clone()], result, run)]);
    };
    of_ip("family", Int, |args, _| Ok(Value::Int(if ip(&args[0])?.is_ipv4() { 4 } else { 6 })));
    of_ip("isUnspecified", Bool, |args, _| Ok(ip(&args[0])?.is_unspecified().into()));
    of_ip("isLoopback", Bool, |args, _| Ok(ip(&args[0])?.is_loopback().into()));
    of_ip("isLinkLocalMulticast", Bool, |args, _| Ok(is_link_local_multicast(ip(&args[0])?).into()));
    of_ip("isLinkLocalUnicast", Bool, |args, _| Ok(is_link_local_unicast(ip(&args[0])?).into()));
    of_ip("isGlobalUnicast", Bool, |args, _| {
        let ip = ip(&args[0])?;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local_unicast(ip);
        Ok((!broadcast && !special).into())
    });
    env.function(
        "string",
        vec![
            global([ip_type.clone()], Text, |args, _| Ok(ip(&args[0])?.to_string().into())),
            global([cidr_type.clone()], Text, |args, _| {
                let cidr = own::<Cidr>(&args[0])?;
                Ok(format!("{}/{}", cidr.address, cidr.length).into())
            }),
        ],
    );
    let contains_ip: Run = |args, _| Ok(own::<Cidr>(&args[0])?.contains(ip(&args[1])?).into());
    env.function(
        "containsIP",
        vec![
            member([cidr_type.clone(), ip_type], Bool, contains_ip),
            member([cidr_type.clone(), Text], Bool, contains_ip),
        ],
    );
    let contains_cidr: Run = |args, _| {
        let outer = own::<Cidr>(&args[0])?;
        let contains = |inner: &Cidr| outer.length <= inner.length && outer.contains(inner.address);
        Ok(match &args[1] {
            Value::String(text) => contains(&parse_cidr(text)?),
            value => contains(own::<Cidr>(value)?),
        }
        .into())
    };
    env.function(
        "containsCIDR",
        vec![
            member([cidr_type.clone(), cidr_type.clone()], Bool, contains_cidr),
            member([cidr_type.clone(), Text], Bool, contains_cidr),
        ],
    );
    env.function(
        "masked",
        vec![member([cidr_type.clone()], cidr_type.clone(), |args, _| {
            let Cidr { address, length } = own::<Cidr>(&args[0])?;
            Ok(Value::opaque(Cidr { address: masked(*address, *length), length: *length }))
        })],
    );
    env.function(
        "prefixLength",
        vec![member([cidr_type], Int, |args, _| Ok(Value::Int(own::<Cidr>(&args[0])?.length.into())))],
    );
}

fn is_link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}
