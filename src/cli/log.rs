//! Logs to standard error, one line an event, as the journal likes them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `MUSSEL_LOG` takes tracing's filter syntax and wins over `--debug`.
pub fn start(debug: bool) {
    let default = match debug {
        true => {
            "info,mussel=debug,mussel_apiserver=debug,mussel_client=debug,mussel_cluster=debug,\
            mussel_controllers=debug,mussel_dns=debug,mussel_kubelet=debug,mussel_network=debug,mussel_runtime=debug,\
            mussel_scheduler=debug,mussel_store=debug"
        }
        // Libraries speak up only when something is wrong.
        false => {
            // openraft warns of the votes that every first start casts twice.
            "warn,openraft=error,mussel=info,mussel_apiserver=info,mussel_client=info,mussel_cluster=info,\
            mussel_controllers=info,mussel_dns=info,mussel_kubelet=info,mussel_network=info,mussel_runtime=info,\
            mussel_scheduler=info,mussel_store=info"
        }
    };
    let filter = EnvFilter::try_from_env("MUSSEL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::stderr().is_terminal();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    // The journal has its own clock. A second call finds the first one's subscriber in place, which is fine.
    let _ = if journal { builder.without_time().try_init() } else { builder.try_init() };
}
