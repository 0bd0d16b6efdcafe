//! A root whose changes are kept in a directory of the host: the second guest sees what the first one did. In the rig:
//! `cargo xtask rig test --test linux_kept_root`.
#![cfg(feature = "vm")]

mod guest;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use guest::{Log, PATIENCE, debian_kernel, our_kernel, with_agent};
use novum_sandbox::linux::End;
use novum_sandbox::linux::guest::{
    BootError, Command, CommandEnd, Guest, GuestConfig, Kernel, Root, Streams,
};
use novum_sandbox::{Input, Output};

/// A folder on an ext4 of its own: what the rig writes to lies in a tmpfs, which has no attributes before Linux 6.6.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(folder.path().join("image")).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(folder.path().join("disk")).unwrap();
        let script = "/usr/sbin/mkfs.ext4 -q image && mount -o loop image disk";
        let made = std::process::Command::new("sh").args(["-c", script]).current_dir(folder.path()).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{made:?}");
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.path()).status();
    }
}

/// A root with busybox and a few files.
fn base(folder: &Path) -> PathBuf {
    let root = folder.join("base");
    for name in ["bin", "etc", "data/old/below", "home", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    let listed = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for name in String::from_utf8(listed.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for (name, text) in
        [("etc/passwd", "base"), ("data/gone", "gone"), ("data/old/below/file", "deep"), ("data/tool", "#")]
    {
        fs::write(root.join(name), text).unwrap();
    }
    root
}

fn config(kernel: &Kernel, folder: &Path) -> GuestConfig {
    let root = Root::Kept { layers: vec![folder.join("base")], upper: folder.join("kept") };
    GuestConfig { root, ..with_agent(kernel.clone(), "kept") }
}

/// Runs `script` in a guest that then powers itself off; its output.
async fn run(config: GuestConfig, script: &str) -> String {
    let mut guest = Guest::boot(config).await.unwrap_or_else(|error| panic!("{error:?}"));
    let script = format!("set -e\n{script}");
    let command = Command {
        args: ["sh", "-c", &script].map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        ..Command::default()
    };
    let log = Arc::new(Log::default());
    let streams = Streams {
        input: Input::Bytes(Bytes::new()),
        output: Output::Collect { limit_bytes: 1 << 20 },
        log: log.clone(),
        control: None,
        deadline: Instant::now() + PATIENCE,
    };
    let done =
        guest.run(&command, streams).await.unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
    let output = String::from_utf8_lossy(&done.output).into_owned();
    assert_eq!(done.end, CommandEnd::Code(0), "{output}\n{}\n{}", log.text(), guest.console());
    assert_eq!(guest.power_off().await, End::PowerOff);
    output
}

/// What the first guest does. Renaming a directory of a lower layer is EXDEV in an overlay, so that mv copies it.
const FIRST: &str = "
cd /data; echo new > made; echo more >> /etc/passwd; rm gone
mv old renamed; mkdir own own/deep; echo x > own/deep/file; mv own mine
chown 1000:1001 tool; chmod 4751 tool; ln -s /etc/passwd link; ln made hard; mkfifo pipe
mkdir -m 1777 sticky; rm -r /home; mkdir /home; echo kept > /home/file; mv /home/file /home/moved
touch /tmp/touched; rm /tmp/touched; sync; echo done";

/// What a later one sees.
const LATER: &str = "
cd /data; cat made hard link renamed/below/file mine/deep/file /home/moved; echo
ls -1 /data /home; stat -c '%n %u:%g %a %F' tool pipe sticky made";
const SEEN: &str = "new
new
basemore
deepx
kept

/data:
hard
link
made
mine
pipe
renamed
sticky
tool

/home:
moved
tool 1000:1001 4751 regular file
pipe 0:0 644 fifo
sticky 0:0 1777 directory
made 0:0 644 regular file
";

async fn what_one_guest_changes_the_next_one_sees(kernel: Kernel) {
    let folder = Disk::new();
    let (root, kept) = (base(&folder.path()), folder.path().join("kept"));
    fs::create_dir(&kept).unwrap();
    assert_eq!(run(config(&kernel, &folder.path()), FIRST).await, "done\n");
    assert_eq!(run(config(&kernel, &folder.path()), LATER).await, SEEN);
    // On the host: the layer is as it was; a whiteout; no special bits, no FIFO.
    assert_eq!(fs::read_to_string(root.join("data/gone")).unwrap(), "gone");
    assert!(fs::symlink_metadata(kept.join("upper/data/gone")).unwrap().file_type().is_char_device());
    assert_eq!(fs::read_to_string(kept.join("upper/data/made")).unwrap(), "new\n");
    let tool = fs::metadata(kept.join("upper/data/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o751);
    assert!(fs::metadata(kept.join("upper/data/pipe")).unwrap().is_file());
}

#[tokio::test]
async fn our_kernel_keeps_what_it_writes_to_its_root() {
    let Some(kernel) = our_kernel("our_kernel_keeps_what_it_writes_to_its_root") else { return };
    what_one_guest_changes_the_next_one_sees(Kernel { image: kernel.vmlinux(), modules: None }).await;
}

#[tokio::test]
async fn debians_kernel_keeps_what_it_writes_to_its_root() {
    let Some(kernel) = debian_kernel("debians_kernel_keeps_what_it_writes_to_its_root") else { return };
    let kernel = Kernel { image: kernel.vmlinux(), modules: Some(kernel.modules()) };
    what_one_guest_changes_the_next_one_sees(kernel).await;
}

#[tokio::test]
async fn a_kept_root_is_one_guests_and_cannot_be_saved() {
    let Some(kernel) = our_kernel("a_kept_root_is_one_guests_and_cannot_be_saved") else { return };
    let kernel = Kernel { image: kernel.vmlinux(), modules: None };
    let folder = Disk::new();
    base(&folder.path());
    fs::create_dir(folder.path().join("kept")).unwrap();
    let inside = Root::Kept { layers: vec![folder.path()], upper: folder.path().join("kept") };
    let error = Guest::boot(GuestConfig { root: inside, ..config(&kernel, &folder.path()) }).await.err();
    assert!(matches!(error, Some(BootError::UpperInLayer { .. })), "{error:?}");
    let mut guest = Guest::boot(config(&kernel, &folder.path())).await.unwrap();
    let error = Guest::boot(config(&kernel, &folder.path())).await.err();
    assert!(matches!(error, Some(BootError::Upper { .. })), "{error:?}");
    let store = novum_snapshot::Store::open(folder.path().join("store")).unwrap();
    let error = guest.snapshot(&store).await.unwrap_err();
    assert!(error.to_string().contains("directory of the host"), "{error}");
    assert!(guest.is_running());
}
