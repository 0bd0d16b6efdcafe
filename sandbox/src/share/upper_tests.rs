//! Upper layers: what a guest gives its files is the guest's alone, and what it cannot reach.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::share::SetTime;

fn upper() -> (tempfile::TempDir, Share) {
    let folder = tempfile::tempdir().unwrap();
    let share = Share::open_upper(folder.path()).unwrap();
    (folder, share)
}

fn make(share: &Share, path: &[u8], mode: u32) {
    share.open(path, Links::Refuse, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode).unwrap();
}

fn stat(share: &Share, path: &[u8]) -> (u32, u32, u32) {
    let attr = share.stat(path, Links::Refuse, false).unwrap();
    (attr.uid, attr.gid, attr.mode)
}

#[test]
fn one_guest_at_a_time_has_it() {
    let (folder, share) = upper();
    assert_eq!(Share::open_upper(folder.path()).err(), Some(UpperError::InUse));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "what was tried out leaves nothing");
    drop(share);
    Share::open_upper(folder.path()).unwrap();
    assert!(matches!(Share::open_upper(&folder.path().join("none")), Err(UpperError::Open(Errno::NOENT))));
}

#[test]
fn a_file_system_without_attributes_is_refused() {
    // procfs has neither files to make nor attributes.
    let error = Share::open_upper(Path::new("/proc/self/task")).err();
    assert!(matches!(error, Some(UpperError::NotWritable(_) | UpperError::NoAttributes(_))), "{error:?}");
}

#[test]
fn owners_and_modes_are_what_the_guest_says_and_only_there() {
    let (folder, share) = upper();
    make(&share, b"f", 0o640);
    share.give_to(b"f", Links::Refuse, (1000, 1001)).unwrap();
    assert_eq!(stat(&share, b"f"), (1000, 1001, 0o100640));
    share.chmod(b"f", Links::Refuse, false, 0o4051).unwrap();
    share.chown(b"f", Links::Refuse, false, None, Some(7)).unwrap();
    assert_eq!(stat(&share, b"f"), (1000, 7, 0o104051));
    let file = share.open(b"f", Links::Refuse, OFlags::RDONLY, 0).unwrap();
    file.chmod(0o600).unwrap();
    file.chown(Some(0), Some(0)).unwrap();
    assert_eq!((file.stat().unwrap().uid, stat(&share, b"f")), (0, (0, 0, 0o100600)));
    file.chmod(0o2755).unwrap();
    let host = std::fs::metadata(folder.path().join("f")).unwrap();
    assert_eq!(host.permissions().mode() & 0o7777, 0o755, "no set-group-ID bit reaches the host");
    assert_eq!(host.uid(), rustix::process::getuid().as_raw());
    file.set_times(SetTime::Now, SetTime::Now).unwrap();
}

#[test]
fn the_vmm_can_use_what_the_guests_modes_forbid() {
    let (folder, share) = upper();
    share.make_dir(b"d", Links::Refuse, 0).unwrap();
    make(&share, b"d/f", 0);
    assert_eq!((stat(&share, b"d"), stat(&share, b"d/f")), ((0, 0, 0o40000), (0, 0, 0o100000)));
    let host = |path: &str| std::fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((host("d"), host("d/f")), (0o700, 0o600));
}

#[test]
fn a_directorys_group_is_inherited_as_on_linux() {
    let (_folder, share) = upper();
    share.make_dir(b"d", Links::Refuse, 0o755).unwrap();
    share.chown(b"d", Links::Refuse, false, Some(5), Some(6)).unwrap();
    share.chmod(b"d", Links::Refuse, false, 0o2775).unwrap();
    share.make_dir(b"d/e", Links::Refuse, 0o755).unwrap();
    share.give_to(b"d/e", Links::Refuse, (8, 9)).unwrap();
    make(&share, b"d/f", 0o644);
    share.give_to(b"d/f", Links::Refuse, (8, 9)).unwrap();
    assert_eq!((stat(&share, b"d/e"), stat(&share, b"d/f")), ((8, 6, 0o42755), (8, 6, 0o100644)));
}

#[test]
fn whiteouts_are_made_and_no_other_device() {
    let (folder, share) = upper();
    share.make_whiteout(b"w", Links::Refuse).unwrap();
    assert_eq!(stat(&share, b"w"), (0, 0, 0o20000));
    make(&share, b"f", 0o644);
    share.rename(b"f", b"g", Links::Refuse, RenameFlags::WHITEOUT).unwrap();
    assert_eq!((stat(&share, b"f").2, stat(&share, b"g").2), (0o20000, 0o100644));
    let device = share.make_special(b"null", Links::Refuse, FileType::CharacterDevice, 0o666);
    assert_eq!(device, Err(Errno::PERM));
    let plain = Share::open_dir(folder.path(), Access::ReadWrite).unwrap();
    assert_eq!(plain.make_whiteout(b"x", Links::Refuse), Err(Errno::PERM));
    assert_eq!(plain.rename(b"g", b"h", Links::Refuse, RenameFlags::WHITEOUT), Err(Errno::INVAL));
}

#[test]
fn fifos_and_sockets_are_plain_files_of_the_host() {
    let (folder, share) = upper();
    share.make_special(b"pipe", Links::Refuse, FileType::Fifo, 0o600).unwrap();
    share.make_special(b"socket", Links::Refuse, FileType::Socket, 0o755).unwrap();
    share.give_to(b"socket", Links::Refuse, (3, 4)).unwrap();
    assert_eq!((stat(&share, b"pipe"), stat(&share, b"socket")), ((0, 0, 0o10600), (3, 4, 0o140755)));
    assert!(std::fs::metadata(folder.path().join("pipe")).unwrap().is_file());
    assert_eq!(share.open(b"pipe", Links::Refuse, OFlags::RDONLY, 0).err(), Some(Errno::ACCESS));
}

#[test]
fn attributes_are_those_of_users_and_never_ours() {
    let (folder, share) = upper();
    make(&share, b"f", 0o600);
    share.chown(b"f", Links::Refuse, false, Some(5), None).unwrap();
    let of = share.attributes(b"f", Links::Refuse).unwrap();
    share.set_attribute(&of, b"user.overlay.opaque", b"y", 0).unwrap();
    share.set_attribute(&of, b"user.empty", b"", 1).unwrap();
    assert_eq!(share.set_attribute(&of, b"user.empty", b"x", 1), Err(Errno::EXIST));
    assert_eq!(of.get(b"user.overlay.opaque").unwrap(), b"y");
    assert_eq!(of.get(b"user.none"), Err(Errno::NODATA));
    let mut names: Vec<_> = of.names().unwrap().split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    names.sort();
    assert_eq!(names, [&b""[..], b"user.empty", b"user.overlay.opaque"]);
    for name in [&b"security.capability"[..], b"trusted.x", b"system.posix_acl_access", b"overlay", b"User.x"]
    {
        assert_eq!(share.set_attribute(&of, name, b"x", 0), Err(Errno::OPNOTSUPP));
        assert_eq!(
            (of.get(name), share.remove_attribute(&of, name)),
            (Err(Errno::OPNOTSUPP), Err(Errno::OPNOTSUPP))
        );
    }
    assert_eq!(share.set_attribute(&of, OVERRIDE, b"0:0:104777", 0), Err(Errno::PERM));
    assert_eq!(
        (of.get(OVERRIDE), share.remove_attribute(&of, OVERRIDE)),
        (Err(Errno::NODATA), Err(Errno::PERM))
    );
    let long = [b"user.", &[b'x'; 300][..]].concat();
    assert_eq!(share.set_attribute(&of, &long, b"x", 0), Err(Errno::RANGE));
    assert_eq!(share.set_attribute(&of, b"user.big", &vec![0; 65537], 0), Err(Errno::TOOBIG));
    assert_eq!(share.set_attribute(&of, b"user.x", b"", 99), Err(Errno::INVAL));
    share.remove_attribute(&of, b"user.empty").unwrap();
    assert_eq!(share.remove_attribute(&of, b"user.empty"), Err(Errno::NODATA));
    let plain = Share::open_dir(folder.path(), Access::ReadWrite).unwrap();
    assert_eq!(plain.attributes(b"f", Links::Refuse).err(), Some(Errno::OPNOTSUPP));
    assert_eq!(plain.set_attribute(&of, b"user.x", b"", 0), Err(Errno::OPNOTSUPP));
}

#[test]
fn attributes_follow_no_link() {
    let (folder, share) = upper();
    let outside = tempfile::NamedTempFile::new().unwrap();
    share.symlink(outside.path().as_os_str().as_encoded_bytes(), b"link", Links::Refuse).unwrap();
    share.symlink(b"/", b"root", Links::Refuse).unwrap();
    let of = share.attributes(b"link", Links::Refuse).unwrap();
    assert_eq!(share.set_attribute(&of, b"user.x", b"y", 0), Err(Errno::PERM));
    assert_eq!((of.get(b"user.x"), of.names()), (Err(Errno::NODATA), Ok(Vec::new())));
    assert!(share.attributes(b"root/etc", Links::Refuse).is_err());
    assert!(share.attributes(b"../x", Links::Refuse).is_err());
    share.chown(b"link", Links::Refuse, false, Some(5), Some(5)).unwrap();
    assert_eq!(stat(&share, b"link"), (0, 0, 0o120777));
    let mut list = [0u8; 100];
    assert_eq!(fs::listxattr(outside.path(), &mut list[..]), Ok(0));
    drop(folder);
}

#[test]
fn what_a_stranger_wrote_into_ours_is_harmless() {
    let (folder, share) = upper();
    make(&share, b"f", 0o600);
    let path = folder.path().join("f");
    for value in [
        &b""[..],
        b"1",
        b"1:2",
        b"1:2:8",
        b"1:2:3:4",
        b"-1:2:3",
        b"\xff:0:0",
        b"99999999999:0:0",
        &[b'1'; 60],
    ] {
        fs::setxattr(&path, OVERRIDE, value, XattrFlags::empty()).unwrap();
        assert_eq!(stat(&share, b"f"), (0, 0, 0o100600), "{value:?}");
    }
    // A file is no device and no directory, whatever it says.
    for mode in ["20666", "60666", "40755", "120777", "0"] {
        fs::setxattr(&path, OVERRIDE, format!("1:2:{mode}").as_bytes(), XattrFlags::empty()).unwrap();
        assert_eq!(stat(&share, b"f").2 & 0o170000, 0o100000, "{mode}");
    }
}
