//! Stop signals: from the names of images and CRI to the kernel's numbers.

use mussel_cri::v1;

/// What stops a container whose image says nothing.
pub const SIGTERM: i32 = libc::SIGTERM;

/// First and last real-time signal as programs see them; the C library keeps two for itself.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// Signals of CRI and their numbers; names that Linux has twice come last.
const NAMED: [(&str, i32); 34] = [
    ("SIGABRT", libc::SIGABRT),
    ("SIGALRM", libc::SIGALRM),
    ("SIGBUS", libc::SIGBUS),
    ("SIGCHLD", libc::SIGCHLD),
    ("SIGCONT", libc::SIGCONT),
    ("SIGFPE", libc::SIGFPE),
    ("SIGHUP", libc::SIGHUP),
    ("SIGILL", libc::SIGILL),
    ("SIGINT", libc::SIGINT),
    ("SIGIO", libc::SIGIO),
    ("SIGKILL", libc::SIGKILL),
    ("SIGPIPE", libc::SIGPIPE),
    ("SIGPROF", libc::SIGPROF),
    ("SIGPWR", libc::SIGPWR),
    ("SIGQUIT", libc::SIGQUIT),
    ("SIGSEGV", libc::SIGSEGV),
    ("SIGSTKFLT", libc::SIGSTKFLT),
    ("SIGSTOP", libc::SIGSTOP),
    ("SIGSYS", libc::SIGSYS),
    ("SIGTERM", libc::SIGTERM),
    ("SIGTRAP", libc::SIGTRAP),
    ("SIGTSTP", libc::SIGTSTP),
    ("SIGTTIN", libc::SIGTTIN),
    ("SIGTTOU", libc::SIGTTOU),
    ("SIGURG", libc::SIGURG),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGVTALRM", libc::SIGVTALRM),
    ("SIGWINCH", libc::SIGWINCH),
    ("SIGXCPU", libc::SIGXCPU),
    ("SIGXFSZ", libc::SIGXFSZ),
    ("SIGCLD", libc::SIGCHLD),
    ("SIGIOT", libc::SIGABRT),
    ("SIGPOLL", libc::SIGIO),
];

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `SIGRTMAX-1`.
pub fn parse(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let name = if text.starts_with("SIG") { text } else { format!("SIG{text}") };
    if let Some((_, number)) = NAMED.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(""), _) => RT_MIN,
        (Some(rest), _) => RT_MIN + rest.strip_prefix('+')?.parse::<i32>().ok()?,
        (_, Some("")) => RT_MAX,
        (_, Some(rest)) => RT_MAX - rest.strip_prefix('-')?.parse::<i32>().ok()?,
        _ => return None,
    };
    (RT_MIN..=RT_MAX).contains(&number).then_some(number)
}

/// `None` for the runtime's default.
pub fn from_cri(signal: i32) -> Option<i32> {
    let name = v1::Signal::try_from(signal).ok()?.as_str_name();
    parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

pub fn to_cri(number: i32) -> v1::Signal {
    if let Some((name, _)) = NAMED.iter().find(|(_, known)| *known == number) {
        return v1::Signal::from_str_name(name).unwrap_or_default();
    }
    let name = match number - RT_MIN {
        0 => "SIGRTMIN".to_owned(),
        30 => "SIGRTMAX".to_owned(),
        offset @ 1..=15 => format!("SIGRTMINPLUS{offset}"),
        offset @ 16..=29 => format!("SIGRTMAXMINUS{}", 30 - offset),
        _ => return v1::Signal::RuntimeDefault,
    };
    v1::Signal::from_str_name(&name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("SIGRTMAX-1", 63), ("SIGRTMAX", 64)]
        {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIGFOO", "0", "99", "SIGRTMIN+40"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn cri_and_back() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(from_cri(to_cri(number).into()), Some(number), "{number}");
        }
        assert_eq!(from_cri(0), None);
    }
}
