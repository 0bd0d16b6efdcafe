//! What `novum snapshot ls` and `inspect` print.

mod common;

use common::*;
use novum_snapshot::inspect::{inspect, list};
use novum_snapshot::*;

#[test]
fn a_listing_tells_references_parents_and_leftovers_apart() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1]));
    let parent = Snapshot::open(&t.store, &bottom).unwrap();
    let top = Writer::diff(&t.store, host(), &parent).unwrap().publish_as(&"hello".parse().unwrap()).unwrap();
    let left = base(&t.store, &image(&[2]));
    let listing = list(&t.store).unwrap();
    let text = listing.to_string();
    let line = |digest: &Digest| text.lines().find(|l| l.starts_with(&digest.to_string()[..12])).unwrap();
    assert!(line(&bottom).ends_with("-             (kept as a parent)"), "{text}");
    assert!(line(&top).ends_with(&format!("{}  hello", &bottom.to_string()[..12])), "{text}");
    assert!(line(&left).ends_with("(unreferenced)"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("3 snapshots, "), "{text}");
    let json = serde_json::to_value(&listing).unwrap();
    assert_eq!(json["snapshots"].as_array().unwrap().len(), 3);
    let of_top =
        json["snapshots"].as_array().unwrap().iter().find(|s| s["digest"] == top.to_string()).unwrap();
    assert_eq!(of_top["parent"], bottom.to_string());
    assert_eq!(of_top["references"][0], "hello");
}

#[test]
fn an_inspection_shows_layers_sections_and_memory() {
    let t = temp_store();
    let bottom = base(&t.store, &image(&[1, 2, 0, 0]));
    let parent = Snapshot::open(&t.store, &bottom).unwrap();
    let mut writer = Writer::diff(&t.store, host(), &parent).unwrap();
    writer.put("9p0", &Name("x".into())).unwrap();
    let now = image(&[1, 3, 0, 0]);
    writer.memory(&[region(0x1000, &now)], &Layout::diff()).unwrap();
    let top = writer.publish_as(&"f".parse().unwrap()).unwrap();
    let inspection = inspect(&t.store, &top).unwrap();
    assert_eq!(inspection.layers.iter().map(|l| l.data_bytes).collect::<Vec<_>>(), [4096, 8192]);
    assert_eq!((inspection.regions[0].bytes, inspection.regions[0].mapped_bytes), (16384, 8192));
    assert_eq!(inspection.regions[0].runs, 2);
    let text = inspection.to_string();
    for part in
        ["references  f", "needs       cpu.avx2, cpu.sse4.2", "name \"9p0\"", "0x000000001000", "flags 0x5"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["sections"][0]["owner"], "9p0");
    assert_eq!(json["layers"][1]["digest"], bottom.to_string());
}
