//! Standard threads, channels, locks, scoped threads, thread-local storage, panics, maps, files, time.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Barrier, Condvar, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

thread_local!(static OWN: Cell<u64> = const { Cell::new(0) });

fn main() {
    let (sender, receiver) = mpsc::channel();
    let barrier = Arc::new(Barrier::new(8));
    let total = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..8u64)
        .map(|i| {
            let (sender, barrier, total) = (sender.clone(), barrier.clone(), total.clone());
            thread::Builder::new()
                .name(format!("worker {i}"))
                .spawn(move || {
                    barrier.wait();
                    for k in 0..10_000u64 {
                        OWN.with(|own| own.set(own.get().wrapping_mul(31).wrapping_add(k ^ i)));
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                    sender.send((i, OWN.with(Cell::get))).unwrap();
                })
                .unwrap()
        })
        .collect();
    drop(sender);
    let results: BTreeMap<_, _> = receiver.iter().collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{results:?} {}", total.load(Ordering::SeqCst));

    let pair = (Mutex::new(0), Condvar::new());
    thread::scope(|scope| {
        for turn in 0..4 {
            let pair = &pair;
            scope.spawn(move || {
                let mut now = pair.1.wait_while(pair.0.lock().unwrap(), |now| *now != turn).unwrap();
                println!("turn {turn}");
                *now += 1;
                pair.1.notify_all();
            });
        }
    });

    let map = RwLock::new(HashMap::new());
    thread::scope(|scope| {
        for i in 0..4 {
            let map = &map;
            scope.spawn(move || (0..1000).for_each(|k| drop(map.write().unwrap().insert(k * 4 + i, k))));
        }
    });
    println!("{}", map.read().unwrap().values().map(|v| *v as u64).sum::<u64>());

    let started = Instant::now();
    let (_sender, silent) = mpsc::channel::<()>();
    println!("{:?}", silent.recv_timeout(Duration::from_millis(20)));
    thread::sleep(Duration::from_millis(5));
    println!("{}", started.elapsed() >= Duration::from_millis(25));

    std::panic::set_hook(Box::new(|info| eprintln!("hook: {:?}", info.payload().downcast_ref::<&str>())));
    println!("{}", std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    println!("{:?}", thread::spawn(|| if true { panic!("in a thread") }).join().is_err());

    let dir = std::env::args().nth(1).unwrap();
    let path = Path::new(&dir).join("deep/er");
    fs::create_dir_all(&path).unwrap();
    let mut file = BufWriter::new(File::create(path.join("numbers")).unwrap());
    (0..5000).for_each(|i| writeln!(file, "{i}").unwrap());
    file.into_inner().unwrap().sync_all().unwrap();
    let mut text = String::new();
    File::open(path.join("numbers")).unwrap().read_to_string(&mut text).unwrap();
    println!("{} {:?}", text.len(), fs::metadata(path.join("numbers")).unwrap().permissions());
    println!("{:?}", File::open(path.join("none")).map(drop));
    fs::hard_link(path.join("numbers"), path.join("linked")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    println!("{names:?} {:?}", fs::canonicalize(path.join("../er/linked")));
    println!("{:?}", std::process::Command::new("/usr/bin/true").status().is_ok() || true);
    std::process::exit(7);
}
