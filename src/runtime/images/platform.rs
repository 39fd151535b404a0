//! OCI documents: manifests, indexes, configurations; and which of several platforms is ours.

use serde::Deserialize;

use super::index::Config;

/// Documents larger than this are not documents.
pub const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub digest: String,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// A manifest or an index: which one it is, its content tells.
#[derive(Debug, Deserialize)]
pub struct Document {
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
pub struct ImageConfiguration {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub config: Option<Config>,
    pub rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// Go's name for this machine's architecture, as images carry it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The entry of an index that runs here; the only entry when it names no platform.
pub fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture())
    };
    let plain = |descriptor: &&&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|platform| {
            platform.variant.as_deref().is_none_or(|variant| variant == "v8" || variant == "v7")
        })
    };
    let fitting: Vec<&Descriptor> = manifests.iter().filter(fits).collect();
    fitting.iter().find(plain).or(fitting.first()).copied().or_else(|| match manifests {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_platform_is_chosen() {
        let entry = |digest: &str, architecture: Option<&str>| Descriptor {
            digest: digest.to_owned(),
            platform: architecture.map(|architecture| Platform {
                os: "linux".to_owned(),
                architecture: architecture.to_owned(),
                variant: None,
            }),
            annotations: Default::default(),
        };
        let many = [entry("x", Some("s390x")), entry("y", Some(architecture())), entry("z", None)];
        assert_eq!(choose(&many).unwrap().digest, "y");
        assert_eq!(choose(&[entry("only", None)]).unwrap().digest, "only");
        assert!(choose(&[entry("x", Some("s390x"))]).is_none());
    }
}
