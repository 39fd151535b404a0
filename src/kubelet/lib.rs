//! mussel-kubelet
