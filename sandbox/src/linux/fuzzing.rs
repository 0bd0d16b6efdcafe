//! What of this engine the fuzz targets call; [`crate::fuzzing`] says what each does.

use std::path::Path;
use std::sync::Arc;

use super::Device;
use super::balloon::Balloon;
use super::block::{Block, DiskAccess};
use super::console::Console;
pub(crate) use super::devices::fs::driver::serve as fuse;
pub(crate) use super::devices::p9::driver::serve as p9;
use super::virtio::driver::poke;
pub(crate) use super::virtio::driver::take_chains as rings;
use super::vsock::Vsock;
pub(crate) use super::{block::driver::serve as block, vsock::driver::serve as vsock};
use crate::share::{Access, Share};

pub(crate) fn registers(bytes: &[u8], dir: &Path) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let share = || Arc::new(Share::open_dir(dir, Access::ReadWrite).expect("the folder is there"));
    let device = match kind % 7 {
        0 => Device::Rng,
        1 => Device::P9 { tag: "p9".into(), share: share() },
        2 => Device::Fs { tag: "fs".into(), share: share() },
        3 => {
            std::fs::write(dir.join("disk"), [1; 1 << 16]).expect("the folder is writable");
            let private = DiskAccess::Private { folder: None };
            Device::Block(Block::open(&dir.join("disk"), private, "disk").expect("the file is there"))
        }
        4 => Device::Balloon(Balloon::new().expect("the host has eventfds")),
        5 => Device::Console(Console::new(Box::new(std::io::sink())).expect("the host has eventfds")),
        _ => Device::Vsock(Vsock::new(3).expect("a guest's address")),
    };
    poke(bytes, device.make());
}
