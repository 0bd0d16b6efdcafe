//! Facts about single calls that the comparison with a real directory does not reach.

use std::fs as host;

use super::*;

#[test]
fn devices_do_what_they_are_for() {
    let mut files = empty();
    let null = files.test_open("/dev/null", libc::O_RDWR).unwrap();
    assert_eq!(files.test_write(null, b"gone"), Ok(4));
    assert_eq!(files.test_read(null, 9).unwrap(), b"");
    let zero = files.test_open("/dev/zero", libc::O_RDWR).unwrap();
    assert_eq!(files.test_read(zero, 5000).unwrap(), vec![0; 5000]);
    let full = files.test_open("/dev/full", libc::O_RDWR).unwrap();
    assert_eq!(files.test_write(full, b"x"), Err(Errno::NOSPC.into()));
    let random = files.test_open("/dev/urandom", libc::O_RDONLY).unwrap();
    assert_ne!(files.test_read(random, 32).unwrap(), files.test_read(random, 32).unwrap());
    assert_eq!(files.test_open("/dev/tty", libc::O_RDWR), Err(Errno::NXIO));
    assert_eq!(files.test_stat("/dev/null").unwrap().rdev, rustix::fs::makedev(1, 3));
    assert_eq!(files.remove(CWD, b"/dev/null", false), Err(Errno::ACCESS));
}

#[test]
fn standard_streams_reach_the_console_under_every_name() {
    #[derive(Default)]
    struct Fixed(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);
    impl Console for Fixed {
        fn read(&mut self, max: usize) -> ConsoleRead {
            ConsoleRead::Data(bytes::Bytes::from_static(b"input").slice(..max.min(5)))
        }
        fn pending(&mut self) -> Option<usize> {
            Some(5)
        }
        fn write(&mut self, _: Stream, bytes: &[u8]) -> ConsoleWrite {
            self.0.lock().extend_from_slice(bytes);
            ConsoleWrite::Taken(bytes.len())
        }
        fn writable(&mut self, _: Stream) -> bool {
            true
        }
    }
    let seen = Fixed::default();
    let out = seen.0.clone();
    let mut files = empty();
    files.set_console(Box::new(seen));
    assert_eq!(files.test_read(0, 3).unwrap(), b"inp");
    let stdin = files.test_open("/dev/stdin", libc::O_RDONLY).unwrap();
    assert_eq!(files.test_read(stdin, 9).unwrap(), b"input");
    for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
        let fd = files.test_open(path, libc::O_WRONLY).unwrap();
        assert_eq!(files.test_write(fd, b"x"), Ok(1));
    }
    assert_eq!(*out.lock(), b"xxx");
    assert_eq!(files.read_link(CWD, b"/proc/self/fd/1").unwrap(), b"pipe:[2]");
    assert_eq!(files.seek(1, 0, libc::SEEK_CUR), Err(Errno::SPIPE));
}

#[test]
fn a_read_without_input_waits_or_says_so() {
    struct Silent;
    impl Console for Silent {
        fn read(&mut self, _: usize) -> ConsoleRead {
            ConsoleRead::Empty
        }
        fn pending(&mut self) -> Option<usize> {
            Some(0)
        }
        fn write(&mut self, _: Stream, _: &[u8]) -> ConsoleWrite {
            ConsoleWrite::Full
        }
        fn writable(&mut self, _: Stream) -> bool {
            false
        }
    }
    let mut files = empty();
    files.set_console(Box::new(Silent));
    assert_eq!(files.test_read(0, 9), Err(Stop::Wait(Need::INPUT)));
    assert_eq!(files.test_write(1, b"x"), Err(Stop::Wait(Need::OUTPUT)));
    files.set_status_flags(0, libc::O_NONBLOCK as u32).unwrap();
    assert_eq!(files.test_read(0, 9), Err(Errno::AGAIN.into()));
    assert_eq!(files.ready_fd(0).unwrap().events, 0);
}

#[test]
fn limits_hold() {
    let mut files = empty();
    let (_, limit) = files.private_bytes();
    let fd = files.test_open("/tmp/big", libc::O_RDWR | libc::O_CREAT).unwrap();
    assert_eq!(files.truncate_open(fd, i64::MAX), Err(Errno::NOSPC));
    assert_eq!(files.allocate(fd, 0, 0, limit as i64 + 1), Err(Errno::NOSPC));
    let chunk = vec![1; 1 << 20];
    let mut total = 0;
    let error = loop {
        match files.test_write(fd, &chunk) {
            Ok(n) => total += n as u64,
            Err(e) => break e,
        }
    };
    assert_eq!(error, Errno::NOSPC.into());
    assert!(total <= limit && total > limit - (1 << 20), "{total} of {limit}");
    files.close(fd).unwrap();
    files.remove(CWD, b"/tmp/big", false).unwrap();
    assert_eq!(files.private_bytes().0, 0);
    let long = vec![b'n'; 256];
    assert_eq!(files.make_dir(CWD, &long, 0o755), Err(Errno::NAMETOOLONG));
    assert_eq!(files.make_dir(CWD, &long[..255], 0o755), Ok(()));
    let deep = b"d/".repeat(2048);
    assert_eq!(files.stat(CWD, &deep, End::Follow, false).err(), Some(Errno::NAMETOOLONG));
}

#[test]
fn names_without_end_run_into_the_limit() {
    let mut files = empty();
    let made = (0..).take_while(|i| files.make_dir(CWD, format!("/d{i}").as_bytes(), 0o755).is_ok()).count();
    assert!((1000..10_000).contains(&made), "{made}");
}

#[test]
fn descriptors_have_a_limit_and_the_lowest_is_given() {
    let mut files = empty();
    for expected in 3..1024 {
        assert_eq!(files.test_open("/", libc::O_RDONLY), Ok(expected));
    }
    assert_eq!(files.test_open("/", libc::O_RDONLY), Err(Errno::MFILE));
    assert_eq!(files.make_pipe(false, false), Err(Errno::MFILE));
    assert_eq!(files.duplicate(0, 1024, false), Err(Errno::INVAL));
    files.close(500).unwrap();
    assert_eq!(files.make_pipe(false, false), Err(Errno::MFILE));
    assert_eq!(files.duplicate(0, 10, false), Ok(500));
    assert_eq!(files.close_range(3, u32::MAX, false), Ok(()));
    assert_eq!(files.test_open("/", libc::O_RDONLY), Ok(3));
}

#[test]
fn descriptors_never_opened_are_refused_everywhere() {
    let mut files = empty();
    for fd in [-1, 3, 1023, 1024, i32::MAX, i32::MIN] {
        assert_eq!(files.test_read(fd, 1), Err(Errno::BADF.into()));
        assert_eq!(files.test_write(fd, b"x"), Err(Errno::BADF.into()));
        assert_eq!(files.seek(fd, 0, 0), Err(Errno::BADF));
        assert_eq!(files.close(fd), Err(Errno::BADF));
        assert_eq!(files.duplicate(fd, 0, false), Err(Errno::BADF));
        assert_eq!(files.duplicate_to(fd, 5, false, true), Err(Errno::BADF));
        assert_eq!(files.stat_open(fd).err(), Some(Errno::BADF));
        assert_eq!(files.truncate_open(fd, 0), Err(Errno::BADF));
        assert_eq!(files.change_dir_open(fd), Err(Errno::BADF));
        assert_eq!(files.ready_fd(fd).err(), Some(Errno::BADF));
        assert_eq!(files.epoll_collect(fd, 1).err(), Some(Errno::BADF));
        assert_eq!(files.stat(fd, b"x", End::Follow, false).err(), Some(Errno::BADF));
    }
}

#[test]
fn extreme_offsets_are_refused() {
    let mut files = empty();
    let fd = files.test_open("/tmp/f", libc::O_RDWR | libc::O_CREAT).unwrap();
    let mut buffer = [0_u8; 8];
    for at in [-1, i64::MIN] {
        assert_eq!(files.read(fd, &mut &mut buffer[..], Some(at)), Err(Errno::INVAL.into()));
        assert_eq!(files.write(fd, &mut &b"x"[..], Some(at)), Err(Errno::INVAL.into()));
    }
    assert_eq!(files.read(fd, &mut &mut buffer[..], Some(i64::MAX)), Err(Errno::INVAL.into()));
    assert_eq!(files.read(fd, &mut &mut buffer[..], Some(i64::MAX - 8)), Ok(0));
    assert!(files.write(fd, &mut &b"12345678"[..], Some(i64::MAX - 8)).is_err());
    assert_eq!(files.seek(fd, i64::MAX, libc::SEEK_SET), Ok(i64::MAX as u64));
    assert_eq!(files.seek(fd, 1, libc::SEEK_CUR), Err(Errno::INVAL));
    assert_eq!(files.seek(fd, -1, libc::SEEK_SET), Err(Errno::INVAL));
    assert_eq!(files.allocate(fd, 0, i64::MAX, i64::MAX), Err(Errno::FBIG));
    assert_eq!(files.truncate_open(fd, -1), Err(Errno::INVAL));
}

#[test]
fn writes_to_the_root_stay_private() {
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("file"), "host").unwrap();
    let mut one = files_with(Some(dir.path()), &[]);
    let mut two = files_with(Some(dir.path()), &[]);
    one.put_file("/file", b"mine").unwrap();
    one.put_file("/new", b"mine").unwrap();
    assert_eq!(one.content("/file").unwrap(), b"mine");
    assert_eq!(two.content("/file").unwrap(), b"host");
    assert_eq!(two.test_stat("/new"), Err(Errno::NOENT));
    assert_eq!(host::read(dir.path().join("file")).unwrap(), b"host");
    assert_eq!(host::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn room_is_not_reserved_beyond_the_limit_of_file_sizes() {
    let mut files = empty();
    files.put_file("/a", b"text").unwrap();
    let fd = files.test_open("/a", libc::O_RDWR).unwrap();
    files.set_file_limit(10);
    assert_eq!(files.allocate(fd, 0, 5, 6), Err(Errno::FBIG));
    assert_eq!(files.allocate(fd, libc::FALLOC_FL_KEEP_SIZE, 5, 6), Ok(()));
    assert_eq!(files.allocate(fd, 0, 5, 5), Ok(()));
    assert_eq!(files.test_stat("/a").unwrap().size, 10);
}

#[test]
fn an_append_of_nothing_leaves_the_position() {
    let mut files = empty();
    files.put_file("/a", b"text").unwrap();
    let fd = files.test_open("/a", libc::O_RDWR | libc::O_APPEND).unwrap();
    assert_eq!(files.test_write(fd, b"").unwrap(), 0);
    assert_eq!(files.test_read(fd, 9).unwrap(), b"text");
}

#[test]
fn readers_see_a_copy_up_through_descriptors_opened_before() {
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("file"), "host").unwrap();
    let mut files = files_with(Some(dir.path()), &[]);
    let reader = files.test_open("/file", libc::O_RDONLY).unwrap();
    assert_eq!(files.test_read(reader, 2).unwrap(), b"ho");
    files.put_file("/file", b"mine").unwrap();
    assert_eq!(files.test_read(reader, 2).unwrap(), b"ne");
}

#[test]
fn a_removed_and_remade_directory_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    host::create_dir(dir.path().join("d")).unwrap();
    host::write(dir.path().join("d/old"), "").unwrap();
    let mut files = files_with(Some(dir.path()), &[]);
    files.remove(CWD, b"/d/old", false).unwrap();
    files.remove(CWD, b"/d", true).unwrap();
    files.make_dir(CWD, b"/d", 0o755).unwrap();
    assert_eq!(files.names("/d").unwrap(), Vec::<String>::new());
    assert_eq!(files.test_stat("/d/old"), Err(Errno::NOENT));
}

#[test]
fn a_directory_of_the_root_moves_with_everything_below() {
    let dir = tempfile::tempdir().unwrap();
    host::create_dir_all(dir.path().join("d/e")).unwrap();
    host::write(dir.path().join("d/e/f"), "deep").unwrap();
    let mut files = files_with(Some(dir.path()), &[]);
    let fd = files.test_open("/d/e/f", libc::O_RDONLY).unwrap();
    files.change_dir(b"/d/e").unwrap();
    files.rename((CWD, b"/d"), (CWD, b"/tmp/m"), 0).unwrap();
    assert_eq!(files.content("/tmp/m/e/f").unwrap(), b"deep");
    assert_eq!(files.working_dir().unwrap(), b"/tmp/m/e");
    assert_eq!(files.read_link(CWD, format!("/proc/self/fd/{fd}").as_bytes()).unwrap(), b"/tmp/m/e/f");
    assert_eq!(files.test_stat("/d"), Err(Errno::NOENT));
}

#[test]
fn shares_are_mounts() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        host::create_dir_all(dir.path().join(name).join("sub")).unwrap();
    }
    host::write(dir.path().join("two/file"), "two").unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut files = files_with(None, &[(&one, "/data", false), (&two, "/data/sub", true)]);
    assert_eq!(files.content("/data/sub/file").unwrap(), b"two");
    assert_eq!(files.content("/data/sub/../sub/file").unwrap(), b"two");
    assert_eq!(files.put_file("/data/sub/file", b"x"), Err(Errno::ROFS));
    assert_eq!(files.remove(CWD, b"/data", true), Err(Errno::BUSY));
    assert_eq!(files.rename((CWD, b"/data/sub"), (CWD, b"/data/x"), 0), Err(Errno::BUSY));
    assert_eq!(files.rename((CWD, b"/data/sub/file"), (CWD, b"/data/file"), 0), Err(Errno::XDEV));
    assert_eq!(files.link((CWD, b"/data/sub/file"), (CWD, b"/tmp/f"), false, false), Err(Errno::XDEV));
    files.put_file("/data/file", b"through").unwrap();
    assert_eq!(host::read(one.join("file")).unwrap(), b"through");
    let devices: std::collections::BTreeSet<u64> =
        ["/", "/data", "/data/sub"].iter().map(|path| files.test_stat(path).unwrap().id.dev).collect();
    assert_eq!(devices.len(), 3);
    let missing = FilesConfig {
        shares: vec![function::Share {
            source: dir.path().join("none"),
            target: "/x".into(),
            read_only: true,
        }],
        ..FilesConfig::new()
    };
    assert!(matches!(Files::new(&missing), Err(FilesError::Open { .. })));
}

#[test]
fn appends_of_two_sandboxes_to_a_share_do_not_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = [(); 2].map(|()| files_with(None, &[(dir.path(), "/mnt", false)]));
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
    let fds = [0, 1].map(|i: usize| both[i].test_open("/mnt/log", flags).unwrap());
    for _ in 0..3 {
        for i in [0, 1] {
            both[i].test_write(fds[i], b"line\n").unwrap();
        }
    }
    assert_eq!(host::read(dir.path().join("log")).unwrap(), b"line\n".repeat(6));
    assert_eq!(both[0].seek(fds[0], 0, libc::SEEK_CUR), Ok(25));
}

#[test]
fn locks_on_a_share_exclude_other_sandboxes() {
    use crate::share::{Lock, LockKind};
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("db"), "x").unwrap();
    let mut both = [(); 2].map(|()| files_with(None, &[(dir.path(), "/mnt", false)]));
    let fds = [0, 1].map(|i: usize| both[i].test_open("/mnt/db", libc::O_RDWR).unwrap());
    let lock = Lock { kind: LockKind::Write, start: 0, length: 0 };
    both[0].set_record_lock(fds[0], lock, false).unwrap();
    assert_eq!(both[1].set_record_lock(fds[1], lock, false), Err(Errno::AGAIN.into()));
    assert!(
        matches!(both[1].set_record_lock(fds[1], lock, true), Err(Stop::Wait(need)) if need.until.is_some())
    );
    both[0].close(fds[0]).unwrap();
    assert_eq!(both[1].set_record_lock(fds[1], lock, false), Ok(()));
}

#[test]
fn flock_conflicts_between_open_files_not_descriptors() {
    let mut files = empty();
    files.put_file("/tmp/f", b"").unwrap();
    let one = files.test_open("/tmp/f", libc::O_RDWR).unwrap();
    let same = files.duplicate(one, 0, false).unwrap();
    let two = files.test_open("/tmp/f", libc::O_RDWR).unwrap();
    assert_eq!(files.flock(one, Some(true), true), Ok(()));
    assert_eq!(files.flock(same, Some(true), true), Ok(()));
    assert_eq!(files.flock(two, Some(false), true), Err(Errno::AGAIN.into()));
    files.close(one).unwrap();
    assert!(files.flock(two, Some(false), true).is_err());
    files.close(same).unwrap();
    assert_eq!(files.flock(two, Some(false), true), Ok(()));
}

#[test]
fn epoll_reports_levels_edges_and_single_shots() {
    let mut files = empty();
    let [read, write] = files.make_pipe(true, false).unwrap();
    let epoll = files.make_epoll(false).unwrap();
    let add = libc::EPOLL_CTL_ADD;
    let modify = libc::EPOLL_CTL_MOD;
    let input = libc::EPOLLIN as u32;
    files.epoll_control(epoll, add, read, (input, 42)).unwrap();
    assert_eq!(files.epoll_control(epoll, add, read, (input, 42)), Err(Errno::EXIST));
    assert_eq!(files.epoll_control(epoll, add, epoll, (input, 0)), Err(Errno::INVAL));
    let file = files.test_open("/tmp/f", libc::O_RDWR | libc::O_CREAT).unwrap();
    assert_eq!(files.epoll_control(epoll, add, file, (input, 0)), Err(Errno::PERM));
    let collect = |files: &mut Files| files.epoll_collect(epoll, 8).unwrap().0;
    assert_eq!(collect(&mut files), []);
    files.test_write(write, b"ab").unwrap();
    assert_eq!(collect(&mut files), [(input, 42)]);
    assert_eq!(collect(&mut files), [(input, 42)]);
    files.epoll_control(epoll, modify, read, (input | libc::EPOLLET as u32, 7)).unwrap();
    assert_eq!(collect(&mut files), [(input, 7)]);
    assert_eq!(collect(&mut files), []);
    files.test_write(write, b"c").unwrap();
    assert_eq!(collect(&mut files), [(input, 7)]);
    files.epoll_control(epoll, modify, read, (input | libc::EPOLLONESHOT as u32, 9)).unwrap();
    assert_eq!(collect(&mut files), [(input, 9)]);
    assert_eq!(collect(&mut files), []);
    files.close(read).unwrap();
    assert_eq!(files.epoll_control(epoll, libc::EPOLL_CTL_DEL, read, (0, 0)), Err(Errno::BADF));
    assert_eq!(collect(&mut files), []);
}

#[test]
fn epoll_instances_do_not_watch_each_other_in_a_circle() {
    let mut files = empty();
    let all: Vec<i32> = (0..8).map(|_| files.make_epoll(false).unwrap()).collect();
    let input = libc::EPOLLIN as u32;
    files.epoll_control(all[0], libc::EPOLL_CTL_ADD, all[1], (input, 0)).unwrap();
    assert_eq!(files.epoll_control(all[1], libc::EPOLL_CTL_ADD, all[0], (input, 0)), Err(Errno::LOOP));
    let [read, write] = files.make_pipe(true, false).unwrap();
    files.epoll_control(all[1], libc::EPOLL_CTL_ADD, read, (input, 5)).unwrap();
    assert_eq!(files.epoll_collect(all[0], 1).unwrap().0, []);
    files.test_write(write, b"x").unwrap();
    assert_eq!(files.epoll_collect(all[0], 1).unwrap().0, [(input, 0)]);
}

#[test]
fn copies_between_descriptors_move_both_positions() {
    let mut files = empty();
    files.put_file("/tmp/from", &(0..=255).cycle().take(300_000).collect::<Vec<u8>>()).unwrap();
    let from = files.test_open("/tmp/from", libc::O_RDONLY).unwrap();
    let to = files.test_open("/tmp/to", libc::O_RDWR | libc::O_CREAT).unwrap();
    assert_eq!(files.copy((from, None), (to, None), 200_000), Ok(200_000));
    assert_eq!(files.copy((from, Some(200_000)), (to, None), usize::MAX), Ok(100_000));
    assert_eq!(files.content("/tmp/to").unwrap(), files.content("/tmp/from").unwrap());
    assert_eq!(files.seek(from, 0, libc::SEEK_CUR), Ok(200_000));
    let [read, write] = files.make_pipe(true, false).unwrap();
    files.seek(from, 0, libc::SEEK_SET).unwrap();
    assert_eq!(files.copy((from, None), (write, None), 300_000), Ok(65_536));
    assert_eq!(files.seek(from, 0, libc::SEEK_CUR), Ok(65_536));
    assert_eq!(files.test_read(read, 3).unwrap(), [0, 1, 2]);
}

#[test]
fn unnamed_files_can_be_named_through_their_descriptor() {
    let mut files = empty();
    let fd = files.test_open("/tmp", libc::O_RDWR | libc::O_TMPFILE).unwrap();
    files.test_write(fd, b"draft").unwrap();
    let link = format!("/proc/self/fd/{fd}");
    files.link((CWD, link.as_bytes()), (CWD, b"/tmp/final"), true, false).unwrap();
    assert_eq!(files.content("/tmp/final").unwrap(), b"draft");
    let hidden = files.test_open("/tmp", libc::O_RDWR | libc::O_TMPFILE | libc::O_EXCL).unwrap();
    assert_eq!(files.link((hidden, b""), (CWD, b"/tmp/x"), false, true), Err(Errno::NOENT));
}

#[test]
fn mappings_of_private_files_are_the_files() {
    let mut files = empty();
    let fd = files.test_open("/tmp/f", libc::O_RDWR | libc::O_CREAT).unwrap();
    files.test_write(fd, b"before").unwrap();
    let MapSource::File(mapping) = files.map(fd, true, true).unwrap() else { panic!("a file") };
    rustix::io::pwrite(&*mapping.fd, b"MAPPED", 0).unwrap();
    assert_eq!(files.content("/tmp/f").unwrap(), b"MAPPED");
    files.test_write(fd, b"!").unwrap();
    let mut seen = [0; 7];
    rustix::io::pread(&*mapping.fd, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"MAPPED!");
    let read_only = files.test_open("/tmp/f", libc::O_RDONLY).unwrap();
    assert_eq!(files.map(read_only, true, true).err(), Some(Errno::ACCESS));
    let dir = files.test_open("/tmp", libc::O_RDONLY).unwrap();
    assert_eq!(files.map(dir, false, false).err(), Some(Errno::NODEV));
    let zero = files.test_open("/dev/zero", libc::O_RDWR).unwrap();
    assert!(matches!(files.map(zero, true, true), Ok(MapSource::Zeroes)));
}

#[test]
fn a_program_without_a_root_stands_where_it_was_put() {
    let dir = tempfile::tempdir().unwrap();
    host::write(dir.path().join("tool"), "ELF").unwrap();
    let config =
        FilesConfig { program: Some((b"/bin/tool".to_vec(), dir.path().join("tool"))), ..FilesConfig::new() };
    let mut files = Files::new(&config).unwrap();
    let (path, _) = files.open_program(b"/bin/../bin/tool").unwrap();
    assert_eq!(path, b"/bin/tool");
    assert_eq!(files.test_stat("/bin/tool").unwrap().mode & 0o777, 0o755);
    files.put_file("/bin/tool", b"patched").unwrap();
    assert_eq!(host::read(dir.path().join("tool")).unwrap(), b"ELF");
    assert_eq!(files.open_program(b"/bin").err(), Some(Errno::ACCESS));
    assert_eq!(files.open_program(b"/none").err(), Some(Errno::NOENT));
}

#[test]
fn many_files_of_the_host_are_forgotten_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..300 {
        host::create_dir(dir.path().join(format!("d{i}"))).unwrap();
        for j in 0..120 {
            host::write(dir.path().join(format!("d{i}/f{j}")), "").unwrap();
        }
    }
    let mut files = files_with(Some(dir.path()), &[]);
    let held = files.test_open("/d0/f0", libc::O_RDONLY).unwrap();
    files.put_file("/d1/f1", b"changed").unwrap();
    for i in 0..300 {
        for j in 0..120 {
            files.test_stat(&format!("/d{i}/f{j}")).unwrap();
        }
        let fd = files.test_open("/", libc::O_RDONLY).unwrap();
        files.close(fd).unwrap();
    }
    assert!(files.tree.live() < 33_000, "{}", files.tree.live());
    assert_eq!(files.content("/d1/f1").unwrap(), b"changed");
    assert_eq!(files.test_read(held, 1).unwrap(), b"");
    assert_eq!(files.names("/d0").unwrap().len(), 120);
}
