//! Small generated files: `/dev`, `/proc`, `/sys`.
//!
//! They stand in the private tree as nodes without content. A text is generated when it is opened, so one open file
//! never changes under its reader. The tables list what C libraries, Go, Python, node and allocators look for;
//! sources: proc(5), sysfs(5), Linux Documentation/admin-guide/{cgroup-v2.rst,sysctl/}.

mod process;
mod system;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tree::{Body, Dir, Node, NodeId, Tree};

/// What generated files tell about the running process. The process engine's core implements it.
pub trait ProcessView {
    /// The process number that the program sees.
    fn pid(&self) -> u32;
    /// The thread that makes the present call.
    fn tid(&self) -> u32;
    /// Every thread's number.
    fn threads(&self) -> Vec<u32>;
    /// A thread's name, at most 15 bytes, without a line end.
    fn comm(&self, tid: u32) -> Vec<u8>;
    /// The text of `/proc/self/maps`.
    fn maps(&self) -> Vec<u8>;
    /// Real, effective and saved user; the same of groups; further groups.
    fn credentials(&self) -> ([u32; 3], [u32; 3], Vec<u32>);
    /// Soft and hard limit of each resource, by its number.
    fn limits(&self) -> [[u64; 2]; 16];
    /// The arguments, each ended by a NUL byte.
    fn cmdline(&self) -> Vec<u8>;
    /// The environment at the start, each entry ended by a NUL byte.
    fn environ(&self) -> Vec<u8>;
    /// The auxiliary vector at the start.
    fn auxv(&self) -> Vec<u8>;
    /// Memory sizes.
    fn memory(&self) -> MemoryView;
    /// Processor time used in user mode and in calls.
    fn cpu_time(&self) -> (Duration, Duration);
    /// Processors that the program may think it has.
    fn cpus(&self) -> u32;
    /// Time since the sandbox's clocks started.
    fn uptime(&self) -> Duration;
    /// The kernel release that `uname` tells.
    fn release(&self) -> String;
    /// The node name that `uname` tells.
    fn hostname(&self) -> String;
    /// A UUID that names this sandbox's boot; another after each restore.
    fn boot_id(&self) -> String;
}

/// Memory sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryView {
    /// The sandbox's limit.
    pub limit: u64,
    /// Mapped addresses.
    pub mapped: u64,
    /// Touched memory.
    pub resident: u64,
    /// The heap (`brk`) and private writable mappings.
    pub data: u64,
    /// The stack mapping.
    pub stack: u64,
}

/// What a text is made from.
pub(crate) struct Scene<'a> {
    pub(crate) process: &'a dyn ProcessView,
    /// The thread whose directory the file is in.
    pub(crate) tid: u32,
    /// Mount points, file system type and whether read-only; the root first.
    pub(crate) mounts: &'a [(Vec<u8>, &'static str, bool)],
    /// Largest number of open files.
    pub(crate) open_files: u64,
    /// Length of the descriptor table, as `FDSize` tells it.
    pub(crate) fd_slots: usize,
}

/// Makes a text.
pub(crate) type Render = fn(&Scene<'_>) -> Vec<u8>;

/// What a generated node does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Synth {
    /// A character device.
    Device(Device),
    /// A text.
    Text(Render),
    /// A link that leads to the thing itself, not to a path.
    Magic(Magic),
    /// A directory whose entries come and go.
    Live(Live),
}

/// The character devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Device {
    Null,
    Zero,
    Full,
    Random,
    Tty,
}

/// The magic links of `/proc/self`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Magic {
    Cwd,
    Exe,
    Root,
}

/// Directories with entries for descriptors or threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    Fds,
    FdInfo,
    Tasks,
}

/// The nodes that others need to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planted {
    /// `/proc/<pid>`.
    pub(crate) process: NodeId,
    /// `/proc/<pid>/task`.
    pub(crate) tasks: NodeId,
}

const DEVICES: &[(&str, Device, u32, u32)] = &[
    ("null", Device::Null, 1, 3),
    ("zero", Device::Zero, 1, 5),
    ("full", Device::Full, 1, 7),
    ("random", Device::Random, 1, 8),
    ("urandom", Device::Random, 1, 9),
    ("tty", Device::Tty, 5, 0),
];

const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Builds `/dev`, `/proc`, `/sys` and `/tmp` into `tree`, over whatever the host's root has there.
pub(crate) fn plant(tree: &mut Tree, pid: u32, cpus: u32) -> Planted {
    plant_devices(tree);
    let tmp = tree.lookup(NodeId::ROOT, b"tmp").ok().flatten();
    if tmp.is_none_or(|tmp| tree.node(tmp).dir().is_none()) {
        tree.plant(NodeId::ROOT, b"tmp", dir_node(0o1777, NodeId::ROOT, b"tmp", false));
    }
    for row in system::TEXTS {
        plant_text(tree, row);
    }
    for cpu in 0..cpus {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/online");
        plant_text(tree, &(path.as_str(), 0o444, system::one));
    }
    plant_process(tree, pid)
}

fn plant_devices(tree: &mut Tree) {
    let dev = plant_dir(tree, "dev");
    for (name, device, major, minor) in DEVICES {
        let mut node = Node::new(libc::S_IFCHR | 0o666, Body::Synth(Synth::Device(*device)));
        node.rdev = rustix::fs::makedev(*major, *minor);
        tree.plant(dev, name.as_bytes(), node);
    }
    for (name, text) in DEVICE_LINKS {
        tree.plant(dev, name.as_bytes(), link_node(text));
    }
    tree.plant(dev, b"shm", dir_node(0o1777, dev, b"shm", false));
}

fn plant_process(tree: &mut Tree, pid: u32) -> Planted {
    let name = pid.to_string();
    let top = plant_dir(tree, "proc");
    tree.plant(top, b"self", link_node(&name));
    tree.plant(top, b"thread-self", link_node(&format!("{name}/task/{name}")));
    tree.plant(top, b"mounts", link_node("self/mounts"));
    let dir = plant_dir(tree, &format!("proc/{name}"));
    for (name, mode, render) in process::TEXTS {
        tree.plant(dir, name.as_bytes(), text_node(*mode, *render));
    }
    for (name, magic) in [("cwd", Magic::Cwd), ("exe", Magic::Exe), ("root", Magic::Root)] {
        let node = Node::new(libc::S_IFLNK | 0o777, Body::Synth(Synth::Magic(magic)));
        tree.plant(dir, name.as_bytes(), node);
    }
    let mut live = |name: &str, live| {
        let node = Node::new(libc::S_IFDIR | 0o555, Body::Synth(Synth::Live(live)));
        tree.plant(dir, name.as_bytes(), node)
    };
    live("fd", Live::Fds);
    live("fdinfo", Live::FdInfo);
    Planted { process: dir, tasks: live("task", Live::Tasks) }
}

/// The texts of one thread's directory, by name.
pub(crate) fn task_texts() -> &'static [(&'static str, u32, Render)] {
    process::TEXTS
}

fn dir_node(mode: u32, parent: NodeId, name: &[u8], fixed: bool) -> Node {
    Node::new(libc::S_IFDIR | mode, Body::Dir(Dir { fixed, ..Dir::new(parent, name) }))
}

fn link_node(text: &str) -> Node {
    Node::new(libc::S_IFLNK | 0o777, Body::Link(Arc::from(text.as_bytes())))
}

fn text_node(mode: u32, render: Render) -> Node {
    Node::new(libc::S_IFREG | mode, Body::Synth(Synth::Text(render)))
}

/// The generated directory `path`, made with those above it.
fn plant_dir(tree: &mut Tree, path: &str) -> NodeId {
    let mut at = NodeId::ROOT;
    for name in path.split('/') {
        let name = name.as_bytes();
        at = match tree.lookup(at, name) {
            Ok(Some(id)) if tree.node(id).dir().is_some_and(|dir| dir.fixed) => id,
            _ => tree.plant(at, name, dir_node(0o755, at, name, true)),
        };
    }
    at
}

fn plant_text(tree: &mut Tree, (path, mode, render): &(&str, u32, Render)) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("proc", path));
    let dir = plant_dir(tree, dir);
    tree.plant(dir, name.as_bytes(), text_node(*mode, *render));
}
