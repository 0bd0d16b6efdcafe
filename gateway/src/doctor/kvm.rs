//! /dev/kvm (Linux Documentation/virt/kvm/api.rst §4.1).

use super::{Context, Finding};

/// The only version that is in use since Linux 2.6.22.
#[cfg(feature = "vm")]
const API_VERSION: i32 = 12;

#[cfg(not(feature = "vm"))]
pub(super) fn device(_: &Context) -> Finding {
    Finding::info("not looked at: this build has no microVM engine")
}

/// Whether it exists, opens, and speaks the known version.
#[cfg(feature = "vm")]
pub(super) fn device(_: &Context) -> Finding {
    match kvm_ioctls::Kvm::new() {
        Ok(kvm) => match kvm.get_api_version() {
            API_VERSION => Finding::good(format!(
                "/dev/kvm opens, API version {API_VERSION}, up to {} vCPUs in a VM",
                kvm.get_max_vcpus()
            )),
            other => Finding::bad(
                format!("/dev/kvm has API version {other}, not {API_VERSION}"),
                "use a kernel with the standard KVM interface",
            ),
        },
        Err(e) => refused(&std::io::Error::from_raw_os_error(e.errno())),
    }
}

#[cfg(feature = "vm")]
fn refused(error: &std::io::Error) -> Finding {
    let detail = format!("/dev/kvm does not open: {error}");
    let advice = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "load the module (modprobe kvm_intel or kvm_amd), switch virtualization on in the firmware, or in a \
             cloud choose a machine type with nested virtualization; in a container pass --device /dev/kvm"
        }
        std::io::ErrorKind::PermissionDenied => {
            "join the group that owns it: sudo usermod -aG kvm $USER, then log in again"
        }
        _ => "the Wasm engine needs no KVM; for the others look at the kernel's log (dmesg | grep -i kvm)",
    };
    Finding::bad(detail, advice)
}
