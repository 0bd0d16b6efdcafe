//! /dev/kvm (Linux Documentation/virt/kvm/api.rst §4.1), and by measurement what kind it is.

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

#[cfg(not(feature = "vm"))]
pub(super) fn speed(_: &Context) -> Finding {
    Finding::info("not looked at: this build has no microVM engine")
}

/// Hardware or software, and what that means for each engine.
#[cfg(feature = "vm")]
pub(super) fn speed(_: &Context) -> Finding {
    match novum_sandbox::kvm::measure() {
        Ok(measured) => judge(&measured),
        Err(reason) => Finding::bad(format!("no VM runs: {reason}"), "see the check `kvm`"),
    }
}

#[cfg(feature = "vm")]
fn judge(measured: &novum_sandbox::kvm::Measured) -> Finding {
    let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6;
    let numbers = format!(
        "a system call's exit {:.1} us, a VM {:.0} us, an instruction {:.2} ns in ring 3 and {:.2} ns in ring 0",
        micros(measured.exit),
        micros(measured.create),
        measured.ring3_ns,
        measured.ring0_ns
    );
    let mut finding = if measured.is_hardware() {
        Finding::good(format!("hardware virtualization: process and linux are both sensible; {numbers}"))
    } else if measured.interprets_ring0() {
        Finding::poor(
            format!(
                "software KVM: process is sensible (programs run natively in ring 3), linux is not (a guest's kernel \
                 is interpreted); {numbers}"
            ),
            "for the linux engine use a machine with VT-x or AMD-V, or a cloud type with nested virtualization",
        )
    } else {
        Finding::good(format!(
            "software KVM that runs ring 0 natively: process and linux are both sensible; {numbers}"
        ))
    };
    finding.measured = serde_json::json!({
        "hardware": measured.is_hardware(),
        "syscall_raises_privilege": measured.syscall_raises_privilege,
        "exit_us": micros(measured.exit),
        "create_vm_us": micros(measured.create),
        "ring3_ns_per_instruction": measured.ring3_ns,
        "ring0_ns_per_instruction": measured.ring0_ns,
        "sensible": { "process": true, "linux": !measured.interprets_ring0() },
    });
    finding
}

#[cfg(all(test, feature = "vm"))]
mod tests {
    use std::time::Duration;

    use novum_sandbox::kvm::Measured;

    use super::super::Verdict;
    use super::judge;

    #[test]
    fn an_interpreted_kernel_is_named_as_what_it_costs() {
        let software = Measured {
            syscall_raises_privilege: false,
            exit: Duration::from_micros(25),
            create: Duration::from_micros(400),
            ring3_ns: 0.3,
            ring0_ns: 550.0,
        };
        let finding = judge(&software);
        assert_eq!(finding.verdict, Verdict::Poor);
        assert!(finding.detail.contains("linux is not"), "{}", finding.detail);
        assert!(finding.detail.contains("550.00 ns in ring 0"), "{}", finding.detail);
        assert_eq!(finding.measured["sensible"]["linux"], false);
        let hardware = Measured { syscall_raises_privilege: true, ring0_ns: 0.3, ..software };
        assert_eq!(judge(&hardware).verdict, Verdict::Good);
        assert_eq!(judge(&hardware).measured["hardware"], true);
    }
}
