//! Images of every form become the directory that they describe, and hostile ones harm nobody.

mod make;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use make::{
    Entry, Layer, Packing, dir, docker_save, file, layer, link, oci_layout, oci_tar, special, symlink,
};
use novum_image::{Error, Image, Limits, Store, import_to, unpack};
use proptest::prelude::*;
use tar::EntryType;

const LIMITS: Limits = Limits { bytes: 4 << 20, entries: 1000 };

/// Unpacks these layers, as an OCI layout, into `<folder>/root`.
fn unpacked(layers: &[Vec<Entry>]) -> (tempfile::TempDir, Result<novum_image::Imported, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let layers: Vec<Layer> = layers.iter().map(|entries| layer(entries, Packing::Plain)).collect();
    let image = folder.path().join("image");
    oci_layout(&image, &layers);
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let result = unpack(&image, None, &root, LIMITS);
    (folder, result)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_image_is_the_same_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let layers = |packing| {
        [
            layer(&[dir("etc/"), file("etc/a", "one"), file("bin/tool", "#!")], packing),
            layer(&[file("./etc/b", "two"), link("bin/same", "bin/tool")], packing),
        ]
    };
    for (number, packing) in [Packing::Plain, Packing::Gzip].into_iter().enumerate() {
        let layers = layers(packing);
        let path = |name: &str| folder.path().join(format!("{name}{number}"));
        oci_layout(&path("oci"), &layers);
        fs::write(path("oci.tar"), oci_tar(&layers)).unwrap();
        fs::write(path("docker.tar"), docker_save(&layers)).unwrap();
        fs::write(path("docker.tar.gz"), make::gzip(&docker_save(&layers))).unwrap();
        for form in ["oci", "oci.tar", "docker.tar", "docker.tar.gz"] {
            let to = path(&format!("out-{form}"));
            let (image, notes) = import_to(&path(form), None, &to, LIMITS).unwrap();
            assert_eq!(notes.entries, 5, "{form}");
            assert_eq!(image.config.reference.as_deref(), Some("test:latest"), "{form}");
            assert_eq!(fs::read_to_string(image.root().join("etc/b")).unwrap(), "two", "{form}");
            assert_eq!(fs::metadata(image.root().join("bin/same")).unwrap().nlink(), 2, "{form}");
            assert_eq!(Image::open(&to).unwrap().config, image.config, "{form}");
            assert_eq!(image.config.command(&["x".into()]), ["/bin/tool", "x"], "{form}");
            assert_eq!(image.config.command(&[]), ["/bin/tool", "--serve"], "{form}");
            assert_eq!((&*image.config.workdir, &*image.config.user), ("/srv", "1000:1000"), "{form}");
            assert_eq!(image.config.env, ["PATH=/bin", "EMPTY="], "{form}");
        }
    }
    assert!(!names(folder.path()).iter().any(|name| name.starts_with('.')), "nothing temporary is left");
}

#[test]
fn whiteouts_hide_what_lower_layers_have_and_nothing_else() {
    let (folder, result) = unpacked(&[
        vec![
            file("a/one", "1"),
            file("a/two", "2"),
            file("b/old/deep", "x"),
            file("b/c", "x"),
            file("d/x", "x"),
        ],
        vec![
            file(".wh.d", ""),
            file("a/.wh.one", ""),
            file("a/three", "3"),
            // The opaque mark comes after what it must not hide.
            file("b/old/new", "n"),
            file("b/fresh/f", "f"),
            file("b/.wh..wh..opq", ""),
            file("b/.wh..wh.plnk", ""),
            file("nowhere/.wh.nothing", ""),
        ],
    ]);
    result.unwrap();
    let root = folder.path().join("root");
    assert_eq!(names(&root), ["a", "b"]);
    assert_eq!(names(&root.join("a")), ["three", "two"]);
    assert_eq!(names(&root.join("b")), ["fresh", "old"]);
    assert_eq!(names(&root.join("b/old")), ["new"]);
}

#[test]
fn a_later_layer_replaces_what_an_earlier_made() {
    let (folder, result) = unpacked(&[
        vec![
            dir("usr/bin/"),
            symlink("bin", "usr/bin"),
            file("x/deep/file", "x"),
            file("y", "old"),
            symlink("z", "y"),
        ],
        vec![
            file("bin/tool", "through the link"),
            file("x", "a file now"),
            dir("y/"),
            file("y/in", "y"),
            dir("z/"),
        ],
    ]);
    result.unwrap();
    let root = folder.path().join("root");
    assert_eq!(fs::read_to_string(root.join("usr/bin/tool")).unwrap(), "through the link");
    assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(fs::read_to_string(root.join("x")).unwrap(), "a file now");
    assert!(fs::symlink_metadata(root.join("z")).unwrap().is_dir());
}

#[test]
fn absolute_links_stay_inside() {
    let (folder, result) = unpacked(&[
        vec![dir("var/run-real/"), symlink("run", "/var/run-real"), symlink("up", "../../../../..")],
        vec![file("run/pid", "1"), file("up/evil", "in the root"), file("/etc/passwd", "mine")],
    ]);
    result.unwrap();
    let root = folder.path().join("root");
    assert_eq!(fs::read_to_string(root.join("var/run-real/pid")).unwrap(), "1");
    assert_eq!(fs::read_to_string(root.join("evil")).unwrap(), "in the root");
    assert_eq!(fs::read_to_string(root.join("etc/passwd")).unwrap(), "mine");
    assert_eq!(names(folder.path()), ["image", "root"]);
}

#[test]
fn nothing_is_written_read_or_removed_outside() {
    let hostile: &[&[Entry]] = &[
        &[file("../evil", "x")],
        &[file("a/../../evil", "x")],
        &[symlink("up", "/nowhere/at/all"), file("up/evil", "x")],
        &[symlink("loop", "loop"), file("loop/evil", "x")],
        &[link("stolen", "/etc/passwd")],
        &[link("stolen", "../secret")],
        &[symlink("up", ".."), link("stolen", "up/secret")],
        &[dir("d/"), link("stolen", "d")],
        &[file(".wh..", "")],
        &[file(".wh...", "")],
        &[file("a/.wh...", "")],
        &[file("../.wh.secret", "")],
        &[file("a", "x"), file("a/b", "x")],
        &[symlink("s", "")],
        &[file("", "x")],
        &[special("x", EntryType::new(b'V'))],
    ];
    for entries in hostile {
        let (folder, result) = {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("secret"), "secret").unwrap();
            let image = folder.path().join("image");
            oci_layout(&image, &[layer(entries, Packing::Plain)]);
            fs::create_dir(folder.path().join("root")).unwrap();
            let result = unpack(&image, None, &folder.path().join("root"), LIMITS);
            (folder, result)
        };
        assert!(matches!(result, Err(Error::Entry { .. })), "{entries:?}: {result:?}");
        assert_eq!(names(folder.path()), ["image", "root", "secret"], "{entries:?}");
        assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "secret");
    }
}

#[test]
fn a_file_is_not_written_through_a_link_of_its_name() {
    let (folder, result) = unpacked(&[
        vec![symlink("a", "../image/index.json"), file("b", "shared"), link("c", "b")],
        vec![file("a", "x"), file("c", "other")],
    ]);
    result.unwrap();
    let root = folder.path().join("root");
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "x");
    assert_eq!(
        fs::read_to_string(root.join("b")).unwrap(),
        "shared",
        "a replaced hard link leaves the other name"
    );
}

#[test]
fn device_nodes_are_left_out_and_set_id_bits_dropped() {
    let (folder, result) = unpacked(&[vec![
        special("dev/null", EntryType::Char),
        special("dev/sda", EntryType::Block),
        special("run/fifo", EntryType::Fifo),
        Entry { mode: 0o6755, ..file("bin/su", "x") },
        Entry { mode: 0o000, ..file("bin/none", "x") },
    ]]);
    let notes = result.unwrap().notes;
    assert_eq!(notes.skipped.len(), 3, "{notes:?}");
    assert_eq!(notes.set_id, 1);
    let mode = |name: &str| {
        fs::metadata(folder.path().join("root").join(name)).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode("bin/su"), 0o755);
    assert_eq!(mode("bin/none"), 0o400, "the server must be able to read it");
}

#[test]
fn long_names_are_taken_and_endless_ones_refused() {
    let long = format!("{}/file", ["d".repeat(90).as_str(); 4].join("/"));
    for form in [make::gnu_long_name(&long, "gnu"), make::pax_long_name(&long, "pax")] {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        oci_layout(&image, &[make::layer_of(form, Packing::Plain)]);
        fs::create_dir(folder.path().join("root")).unwrap();
        unpack(&image, None, &folder.path().join("root"), LIMITS).unwrap();
        assert!(folder.path().join("root").join(&long).is_file());
    }
    let endless = make::gnu_long_name(&"x".repeat(1 << 20), "gnu");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    oci_layout(&image, &[make::layer_of(endless, Packing::Plain)]);
    let result = unpack(&image, None, folder.path(), LIMITS);
    assert!(matches!(result, Err(Error::Layer { .. })), "{result:?}");
}

#[test]
fn limits_hold_for_bombs() {
    let zeroes = "\0".repeat(5 << 20);
    let bomb = layer(&[file("zeroes", &zeroes)], Packing::Gzip);
    assert!(bomb.stored.len() < 64 << 10);
    let many: Vec<Entry> = (0..1001).map(|number| file(&format!("f{number}"), "")).collect();
    for bad in [bomb, layer(&many, Packing::Plain)] {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        oci_layout(&image, &[bad]);
        let to = folder.path().join("to");
        let result = import_to(&image, None, &to, LIMITS);
        assert!(matches!(result, Err(Error::TooLarge(_))), "{result:?}");
        assert_eq!(names(folder.path()), ["image"], "what was begun is removed");
    }
}

#[test]
fn every_damaged_byte_is_noticed() {
    for packing in [Packing::Plain, Packing::Gzip] {
        let good = layer(&[file("a", "content")], packing);
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        oci_layout(&image, std::slice::from_ref(&good));
        let blobs = image.join("blobs/sha256");
        for name in names(&blobs) {
            let path = blobs.join(&name);
            let whole = fs::read(&path).unwrap();
            for at in (0..whole.len()).step_by(whole.len() / 23 + 1) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x20;
                fs::write(&path, damaged).unwrap();
                let root = tempfile::tempdir().unwrap();
                assert!(unpack(&image, None, root.path(), LIMITS).is_err(), "{name} at {at}");
            }
            fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            let root = tempfile::tempdir().unwrap();
            assert!(unpack(&image, None, root.path(), LIMITS).is_err(), "{name} cut off");
            fs::write(&path, whole).unwrap();
        }
        let root = tempfile::tempdir().unwrap();
        unpack(&image, None, root.path(), LIMITS).unwrap();
    }
}

#[test]
fn what_is_no_image_is_told_what_would_be() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.tar"), "hello").unwrap();
    fs::write(folder.path().join("x.zst"), [0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap();
    for (name, hint) in [("", "docker save"), ("x.tar", "docker save"), ("x.zst", "zstd -d")] {
        let error = unpack(&folder.path().join(name), None, folder.path(), LIMITS).unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
    let arm = make::Made { architecture: "arm64" };
    let image = folder.path().join("image");
    make::oci_layout_of(&image, &[layer(&[file("a", "x")], Packing::Plain)], &arm);
    let error = unpack(&image, None, folder.path(), LIMITS).unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[test]
fn a_store_keeps_images_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str, text: &str| {
        let path = folder.path().join(name);
        oci_layout(&path, &[layer(&[file("a", text)], Packing::Gzip)]);
        path
    };
    let (one, two) = (image("one", "1"), image("two", "2"));
    let store = Store::new(folder.path().join("store"));
    assert!(store.list().unwrap().is_empty());
    store.import(&one, None, None, LIMITS).unwrap();
    store.import(&one, None, Some("library/one:1.0"), LIMITS).unwrap();
    store.import(&two, None, Some("two"), LIMITS).unwrap();
    let listed: Vec<String> = store.list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, ["library/one:1.0", "test:latest", "two"]);
    // A name moves to another image, and the first is kept for its other names.
    store.import(&two, None, Some("test:latest"), LIMITS).unwrap();
    let text = |name: &str| fs::read_to_string(store.get(name).unwrap().root().join("a")).unwrap();
    assert_eq!((text("test:latest"), text("library/one:1.0")), ("2".into(), "1".into()));
    store.remove("two").unwrap();
    assert_eq!(text("test:latest"), "2");
    let gone = store.get("library/one:1.0").unwrap().folder;
    store.remove("library/one:1.0").unwrap();
    assert!(!gone.exists());
    for bad in ["", "../x", ".hidden", "a b", "a\n"] {
        assert!(matches!(store.import(&one, None, Some(bad), LIMITS), Err(Error::Name(_))), "{bad}");
    }
    assert!(store.get("two").is_err());
}

#[test]
fn an_image_that_umoci_made_is_what_umoci_unpacks() {
    let umoci = |folder: &Path, words: &[&str]| {
        let done = std::process::Command::new("umoci").args(words).current_dir(folder).output();
        done.map(|output| assert!(output.status.success(), "{words:?}: {output:?}"))
    };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    if umoci(at, &["init", "--layout", "image"]).is_err() {
        eprintln!("SKIPPED: an_image_that_umoci_made_is_what_umoci_unpacks: umoci is not installed");
        return;
    }
    let unpack_to =
        |bundle: &str| umoci(at, &["unpack", "--rootless", "--image", "image:one", bundle]).unwrap();
    umoci(at, &["new", "--image", "image:one"]).unwrap();
    unpack_to("first");
    let root = at.join("first/rootfs");
    fs::create_dir_all(root.join("etc/gone")).unwrap();
    fs::write(root.join("etc/gone/file"), "x").unwrap();
    fs::write(root.join("etc/kept"), "first").unwrap();
    std::os::unix::fs::symlink("etc/kept", root.join("link")).unwrap();
    umoci(at, &["repack", "--image", "image:one", "first"]).unwrap();
    unpack_to("second");
    let root = at.join("second/rootfs");
    fs::remove_dir_all(root.join("etc/gone")).unwrap();
    fs::write(root.join("etc/kept"), "second").unwrap();
    fs::write(root.join(format!("etc/{}", "long".repeat(60))), "long").unwrap();
    umoci(at, &["repack", "--image", "image:one", "second"]).unwrap();
    umoci(at, &["config", "--image", "image:one", "--config.cmd", "/bin/x", "--config.env", "A=b"]).unwrap();
    unpack_to("third");
    let (image, _) = import_to(&at.join("image"), Some("one"), &at.join("ours"), LIMITS).unwrap();
    assert_eq!(
        (image.config.command(&[]), &*image.config.env),
        (vec!["/bin/x".to_owned()], &["A=b".to_owned()][..])
    );
    assert_eq!(tree(&image.root()), tree(&at.join("third/rootfs")));
}

/// Every path below `folder` with what it is.
fn tree(folder: &Path) -> std::collections::BTreeMap<std::path::PathBuf, String> {
    let mut all = std::collections::BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(&name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            all.extend(tree(&path).into_iter().map(|(below, what)| (Path::new(&name).join(below), what)));
            all.insert(name.into(), "folder".into());
        } else if kind.is_symlink() {
            all.insert(name.into(), format!("-> {:?}", fs::read_link(&path).unwrap()));
        } else {
            all.insert(name.into(), fs::read_to_string(&path).unwrap());
        }
    }
    all
}

/// Names that meet each other and try to leave.
fn nasty_name() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => proptest::sample::select(vec!["a", "b", "c", "up", "here"]).prop_map(str::to_owned),
        1 => proptest::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", "outside"])
            .prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 1..5).prop_map(|pieces| pieces.join("/"))
}

fn nasty_entry() -> impl Strategy<Value = Entry> {
    let target = prop_oneof![
        nasty_name(),
        Just("../outside".to_owned()),
        Just("/".to_owned()),
        Just("../..".to_owned())
    ];
    let kind =
        proptest::sample::select(vec![0u8, b'0', b'0', b'5', b'5', b'2', b'2', b'1', b'3', b'6', b'L', b'x']);
    (nasty_name(), target, kind, 0u32..0o10000).prop_map(|(name, link, kind, mode)| Entry {
        link,
        mode,
        body: if matches!(kind, b'0' | b'L' | b'x') { b"body".to_vec() } else { Vec::new() },
        ..special(&name, EntryType::new(kind))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn random_images_leave_everything_outside_as_it_was(
        layers in proptest::collection::vec(proptest::collection::vec(nasty_entry(), 0..12), 1..4)
    ) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("outside/a")).unwrap();
        fs::write(folder.path().join("outside/b"), "outside").unwrap();
        let image = folder.path().join("image");
        let layers: Vec<Layer> = layers.iter().map(|entries| layer(entries, Packing::Plain)).collect();
        oci_layout(&image, &layers);
        fs::create_dir(folder.path().join("root")).unwrap();
        let before = (tree(&folder.path().join("outside")), tree(&image).len());
        let _ = unpack(&image, None, &folder.path().join("root"), LIMITS);
        prop_assert_eq!(names(folder.path()), ["image", "outside", "root"]);
        prop_assert_eq!((tree(&folder.path().join("outside")), tree(&image).len()), before);
    }

    #[test]
    fn random_bytes_are_no_layer(bytes in proptest::collection::vec(any::<u8>(), 0..2048), at in 0usize..512) {
        let folder = tempfile::tempdir().unwrap();
        // A good archive with a piece of garbage in it, so that the parser gets somewhere.
        let mut tar = make::tar_of(&[file("a", "x"), file("b", "y")]);
        let end = (at + bytes.len()).min(tar.len());
        tar[at..end].copy_from_slice(&bytes[..end - at]);
        let image = folder.path().join("image");
        oci_layout(&image, &[make::layer_of(tar, Packing::Plain)]);
        fs::create_dir(folder.path().join("root")).unwrap();
        let _ = unpack(&image, None, &folder.path().join("root"), LIMITS);
        prop_assert_eq!(names(folder.path()), ["image", "root"]);
    }
}
