//! Flags of k3s that are accepted so that its users' unit and config files go on working, and that change nothing here.

use clap::{ArgAction, Args};

use super::super::components::Unused;

/// Those of every node.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accepted for k3s' sake, without effect")]
pub struct NodeAccepted {
    /// There is no pause image
    #[arg(long, env = "MUSSEL_PAUSE_IMAGE", value_name = "IMAGE")]
    pub pause_image: Option<String>,
    /// Images are unpacked for overlayfs
    #[arg(long, env = "MUSSEL_SNAPSHOTTER", value_name = "NAME")]
    pub snapshotter: Option<String>,
    /// Containers are not labelled
    #[arg(long, env = "MUSSEL_SELINUX", num_args = 0..=1, default_missing_value = "true")]
    pub selinux: Option<bool>,
    /// Kernel settings are raised where a node needs it
    #[arg(long, env = "MUSSEL_PROTECT_KERNEL_DEFAULTS", num_args = 0..=1, default_missing_value = "true")]
    pub protect_kernel_defaults: Option<bool>,
    /// No other programs are bundled
    #[arg(long, env = "MUSSEL_PREFER_BUNDLED_BIN", num_args = 0..=1, default_missing_value = "true")]
    pub prefer_bundled_bin: Option<bool>,
    /// There is one runtime
    #[arg(long, env = "MUSSEL_DEFAULT_RUNTIME", value_name = "NAME")]
    pub default_runtime: Option<String>,
    /// The pod network has no settings file
    #[arg(long, env = "MUSSEL_FLANNEL_CONF", value_name = "FILE")]
    pub flannel_conf: Option<String>,
    /// The pod network is no CNI plugin
    #[arg(long, env = "MUSSEL_FLANNEL_CNI_CONF", value_name = "FILE")]
    pub flannel_cni_conf: Option<String>,
    /// Use --debug, or MUSSEL_LOG
    #[arg(short = 'v', env = "MUSSEL_V", value_name = "LEVEL")]
    pub verbosity: Option<String>,
    /// Use MUSSEL_LOG
    #[arg(long, env = "MUSSEL_VMODULE", value_name = "LEVELS")]
    pub vmodule: Option<String>,
    /// The log goes to standard error, from where the service manager takes it
    #[arg(short = 'l', long, env = "MUSSEL_LOG_FILE", value_name = "FILE")]
    pub log: Option<String>,
    /// The log goes there in any case
    #[arg(long, env = "MUSSEL_ALSOLOGTOSTDERR", num_args = 0..=1, default_missing_value = "true")]
    pub alsologtostderr: Option<bool>,
    /// There is nothing to look at yet
    #[arg(long, env = "MUSSEL_ENABLE_PPROF", num_args = 0..=1, default_missing_value = "true")]
    pub enable_pprof: Option<bool>,
    /// An agent always goes by its balancer
    #[arg(long, env = "MUSSEL_DISABLE_APISERVER_LB", num_args = 0..=1, default_missing_value = "true")]
    pub disable_apiserver_lb: Option<bool>,
}

/// Those of servers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accepted for k3s' sake, without effect")]
pub struct ServerAccepted {
    /// There is no cloud controller: nodes know their own addresses
    #[arg(long, env = "MUSSEL_DISABLE_CLOUD_CONTROLLER", num_args = 0..=1, default_missing_value = "true")]
    pub disable_cloud_controller: Option<bool>,
    /// There is no Helm controller yet
    #[arg(long, env = "MUSSEL_DISABLE_HELM_CONTROLLER", num_args = 0..=1, default_missing_value = "true")]
    pub disable_helm_controller: Option<bool>,
    /// There is no Helm controller yet
    #[arg(long, env = "MUSSEL_HELM_JOB_IMAGE", value_name = "IMAGE")]
    pub helm_job_image: Option<String>,
    /// There is no Helm controller yet
    #[arg(long, env = "MUSSEL_HELM_CONTROLLER_ARG", value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub helm_controller_arg: Vec<String>,
    /// The load balancer needs no pods
    #[arg(long, env = "MUSSEL_SERVICELB_NAMESPACE", value_name = "NAMESPACE")]
    pub servicelb_namespace: Option<String>,
    /// No images are bundled
    #[arg(long, env = "MUSSEL_SYSTEM_DEFAULT_REGISTRY", value_name = "REGISTRY")]
    pub system_default_registry: Option<String>,
    /// There is no mirror among nodes yet
    #[arg(long, env = "MUSSEL_EMBEDDED_REGISTRY", num_args = 0..=1, default_missing_value = "true")]
    pub embedded_registry: Option<bool>,
    /// Servers reach kubelets through the agents' tunnels, as with `agent`
    #[arg(long, env = "MUSSEL_EGRESS_SELECTOR_MODE", value_name = "MODE")]
    pub egress_selector_mode: Option<String>,
    /// The certificate never grows by what clients ask for
    #[arg(long, env = "MUSSEL_TLS_SAN_SECURITY", num_args = 0..=1, default_missing_value = "true")]
    pub tls_san_security: Option<bool>,
    /// There is no IPv6 yet
    #[arg(long, env = "MUSSEL_FLANNEL_IPV6_MASQ", num_args = 0..=1, default_missing_value = "true")]
    pub flannel_ipv6_masq: Option<bool>,
    /// The store's figures are at /metrics of the API
    #[arg(long, env = "MUSSEL_ETCD_EXPOSE_METRICS", num_args = 0..=1, default_missing_value = "true")]
    pub etcd_expose_metrics: Option<bool>,
    /// Figures are at /metrics of the API
    #[arg(long, env = "MUSSEL_SUPERVISOR_METRICS", num_args = 0..=1, default_missing_value = "true")]
    pub supervisor_metrics: Option<bool>,
    /// Snapshots are what is in their folder
    #[arg(long, env = "MUSSEL_ETCD_SNAPSHOT_RECONCILE_INTERVAL", value_name = "TIME")]
    pub etcd_snapshot_reconcile_interval: Option<String>,
    /// A server needs no balancer of its own
    #[arg(long, env = "MUSSEL_LB_SERVER_PORT", value_name = "PORT")]
    pub lb_server_port: Option<u16>,
}

/// A line for each that was given, unless it asks for what is so anyway.
fn say(unused: &mut Unused, flag: &str, given: bool, why: &str) {
    if given {
        unused.say(format!("--{flag} has no effect: {why}"));
    }
}

impl NodeAccepted {
    pub fn note(&self, unused: &mut Unused) {
        let other = |given: &Option<String>, usual: &str| given.as_deref().is_some_and(|given| given != usual);
        let on = |given: Option<bool>| given == Some(true);
        for (flag, given, why) in [
            ("pause-image", self.pause_image.is_some(), "there is no pause image; pods are held by mussel itself"),
            ("snapshotter", other(&self.snapshotter, "overlayfs"), "images are unpacked for overlayfs"),
            ("selinux", on(self.selinux), "containers are not labelled"),
            (
                "protect-kernel-defaults",
                on(self.protect_kernel_defaults),
                "kernel settings are raised where a node needs it",
            ),
            ("default-runtime", other(&self.default_runtime, "runc"), "there is one runtime"),
            ("flannel-conf", self.flannel_conf.is_some(), "use --flannel-backend and --flannel-iface"),
            ("flannel-cni-conf", self.flannel_cni_conf.is_some(), "pods are not connected by a CNI plugin"),
            ("v", other(&self.verbosity, "0"), "use --debug or MUSSEL_LOG"),
            ("vmodule", self.vmodule.is_some(), "use MUSSEL_LOG"),
            ("log", self.log.is_some(), "the log goes to standard error, from where the service manager takes it"),
            ("enable-pprof", on(self.enable_pprof), "there is nothing to look at yet"),
            ("disable-apiserver-lb", on(self.disable_apiserver_lb), "an agent always goes by its balancer"),
        ] {
            say(unused, flag, given, why);
        }
    }
}

impl ServerAccepted {
    pub fn note(&self, unused: &mut Unused) {
        let on = |given: Option<bool>| given == Some(true);
        for (flag, given, why) in [
            ("helm-job-image", self.helm_job_image.is_some(), "there is no Helm controller yet"),
            ("helm-controller-arg", !self.helm_controller_arg.is_empty(), "there is no Helm controller yet"),
            ("servicelb-namespace", self.servicelb_namespace.is_some(), "the load balancer needs no pods"),
            ("system-default-registry", self.system_default_registry.is_some(), "no images are bundled"),
            ("embedded-registry", on(self.embedded_registry), "there is no mirror among nodes yet"),
            (
                "egress-selector-mode",
                self.egress_selector_mode.as_deref().is_some_and(|mode| mode != "agent"),
                "servers reach kubelets through the agents' tunnels",
            ),
            (
                "tls-san-security",
                self.tls_san_security == Some(false),
                "the certificate never grows by what clients ask for",
            ),
            ("flannel-ipv6-masq", on(self.flannel_ipv6_masq), "there is no IPv6 yet"),
            ("etcd-expose-metrics", on(self.etcd_expose_metrics), "the store's figures are at /metrics of the API"),
            ("supervisor-metrics", on(self.supervisor_metrics), "figures are at /metrics of the API"),
        ] {
            say(unused, flag, given, why);
        }
    }
}
