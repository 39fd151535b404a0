//! Values of flags, and how they are read.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

impl Taint {
    /// Until a cloud's own controller has looked at the machine.
    pub fn uninitialized() -> Self {
        Self {
            key: "node.cloudprovider.kubernetes.io/uninitialized".to_owned(),
            value: "true".to_owned(),
            effect: "NoSchedule".to_owned(),
        }
    }
}

/// `24h`, `1h30m`, `90s`, `500ms` or `0`, as Go writes them; only whole numbers.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 24h, 90m or 0");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut total, mut number) = (0_u64, String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let milliseconds = match letter {
            '0'..='9' => {
                number.push(letter);
                continue;
            }
            'd' => 86_400_000,
            'h' => 3_600_000,
            'm' if letters.next_if_eq(&'s').is_some() => 1,
            'm' => 60_000,
            's' => 1000,
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        total = count.checked_mul(milliseconds).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    if number.is_empty() && !text.is_empty() { Ok(Duration::from_millis(total)) } else { Err(wrong()) }
}

pub fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("not a file mode in octal, such as 0644".to_owned()),
    }
}

pub fn cidr_v4(text: &str) -> Result<String, String> {
    let parsed = text.split_once('/').and_then(|(address, bits)| {
        let address: std::net::Ipv4Addr = address.parse().ok()?;
        let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
        let mask = u32::MAX << (32 - bits);
        Some(format!("{}/{bits}", std::net::Ipv4Addr::from(u32::from(address) & mask)))
    });
    parsed.ok_or_else(|| "not an IPv4 network with 8 to 30 bits, such as 10.42.0.0/16".to_owned())
}

pub fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let range = PortRange { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    });
    parsed.ok_or_else(|| "not a range of ports, such as 30000-32767".to_owned())
}

pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let mut wrong = mussel_api::names::is_qualified_name(key);
    wrong.extend(mussel_api::names::is_label_value(value));
    if wrong.is_empty() { Ok((key.to_owned(), value.to_owned())) } else { Err(wrong.join("; ")) }
}

pub fn taint(text: &str) -> Result<Taint, String> {
    let (pair, effect) = text.rsplit_once(':').ok_or("not of the form key=value:effect")?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(format!("effect {effect:?} is none of NoSchedule, PreferNoSchedule, NoExecute"));
    }
    let (key, value) = label(pair)?;
    Ok(Taint { key, value, effect: effect.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("1m500ms"), Ok(Duration::from_millis(60_500)));
        for wrong in ["", "5", "h", "1x", "-1h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
