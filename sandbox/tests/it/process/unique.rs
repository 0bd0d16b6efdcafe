//! Two sandboxes of one image are never twins: randomness, identifiers, time.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::has_kvm;
use super::images::{Warm, text};

/// What `warm` says in two sandboxes, three times each: one line per call.
async fn say(warm: &Warm) -> Vec<String> {
    let (mut one, mut other) = (warm.start().await, warm.start().await);
    let mut said = Vec::new();
    for _ in 0..3 {
        said.push(text(&mut one, b"x").await);
        said.push(text(&mut other, b"x").await);
    }
    said
}

/// Checks that no word at one place of the lines comes twice.
fn assert_no_twins(said: &[String]) {
    let words: Vec<Vec<&str>> = said.iter().map(|line| line.split_whitespace().collect()).collect();
    for column in 0..words[0].len() {
        let different: HashSet<&str> = words.iter().map(|line| line[column]).collect();
        assert_eq!(different.len(), said.len(), "word {column} repeats: {said:#?}");
    }
}

#[tokio::test]
async fn random_bytes_boot_ids_and_at_random_differ_and_the_time_is_now() {
    if !has_kvm("random_bytes_boot_ids_and_at_random_differ_and_the_time_is_now") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        #include <sys/auxv.h>
        #include <sys/random.h>
        #include <time.h>
        static void print(const void *bytes, int n) {
            for (int i = 0; i < n; i++) printf("%02x", ((unsigned char *)bytes)[i]);
            putchar(' ');
        }
        static void file(const char *path, int n) {
            char bytes[40] = {0};
            FILE *f = fopen(path, "r");
            fread(bytes, 1, n, f), fclose(f), print(bytes, n);
        }
        int main(void) {
            char bytes[16];
            struct timespec before, after, wall;
            clock_gettime(CLOCK_MONOTONIC, &before);
            getrandom(bytes, 16, 0);
            getchar();
            print((void *)getauxval(AT_RANDOM), 16);
            getrandom(bytes, 16, 0), print(bytes, 16);
            file("/dev/urandom", 16), file("/proc/sys/kernel/random/uuid", 36);
            file("/proc/sys/kernel/random/boot_id", 36);
            clock_gettime(CLOCK_MONOTONIC, &after), clock_gettime(CLOCK_REALTIME, &wall);
            fprintf(stderr, "x");
            printf("%ld.%09ld %ld\n", wall.tv_sec, wall.tv_nsec, after.tv_sec - before.tv_sec);
        }"#;
    let warm = Warm::c(source, &["-static"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let said = say(&warm).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut lines = Vec::new();
    for line in &said {
        let (line, passed) = line.trim().rsplit_once(' ').unwrap();
        assert!(passed.parse::<u64>().unwrap() <= 1, "the monotonic clock goes on where it stood: {passed}");
        let wall: u64 = line.rsplit_once(' ').unwrap().1.split('.').next().unwrap().parse().unwrap();
        assert!(now - wall < 60, "{wall} is not now");
        lines.push(line.to_owned());
    }
    assert_no_twins(&lines);
}

#[tokio::test]
async fn pythons_random_numbers_differ() {
    if !has_kvm("pythons_random_numbers_differ") || !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let script = "
import os, random, secrets, ssl, sys, uuid
BOOT = '/proc/sys/kernel/random/boot_id'
ssl.RAND_bytes(8)
before = open(BOOT).read()
sys.stdin.read()
# The documented hook: a generator that was seeded before the image is seeded again where the boot id has changed.
if open(BOOT).read() != before:
    random.seed()
    ssl.RAND_add(os.urandom(32), 32)
print(random.random(), uuid.uuid4(), uuid.uuid1(), secrets.token_hex(16), os.urandom(8).hex(), ssl.RAND_bytes(8).hex())
";
    let Some(warm) = Warm::python(script).await else { return };
    assert_no_twins(&say(&warm).await);
}

#[tokio::test]
async fn openssl_that_is_first_used_after_the_image_differs() {
    if !has_kvm("openssl_that_is_first_used_after_the_image_differs")
        || !Path::new("/usr/bin/python3").exists()
    {
        return;
    }
    let script = "import ssl, sys; sys.stdin.read(); print(ssl.RAND_bytes(16).hex())";
    let Some(warm) = Warm::python(script).await else { return };
    assert_no_twins(&say(&warm).await);
}

#[tokio::test]
async fn go_draws_fresh_keys_and_its_maps_keep_the_images_seed() {
    let test = "go_draws_fresh_keys_and_its_maps_keep_the_images_seed";
    if !has_kvm(test) {
        return;
    }
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("SKIPPED: {test}: go is not installed");
        return;
    }
    let source = r#"package main
import ("bufio"; "crypto/rand"; "fmt"; "os")
func main() {
    m := map[int]int{}
    for i := 0; i < 1000; i++ { m[i] = i * i }
    bufio.NewReader(os.Stdin).ReadByte()
    key := make([]byte, 16)
    rand.Read(key)
    sum := 0
    for k, v := range m { if k*k == v { sum += k } }
    if sum != 499500 { os.Exit(1) }
    fmt.Printf("%x\n", key)
}"#;
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("main.go"), dir.path().join("program"));
    std::fs::write(&file, source).unwrap();
    let mut go = Command::new("go");
    go.args(["build", "-o"])
        .arg(&program)
        .arg(&file)
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", dir.path().join("cache"));
    assert!(go.env("HOME", dir.path()).status().unwrap().success());
    let warm = Warm::of(&program).await;
    assert_no_twins(&say(&warm).await);
}
