//! Programs without an image at their input start from their entry point, and nobody can tell.

use std::path::Path;
use std::process::Command;

use novum_sandbox::{Image, Renewal, Share};
use std::sync::Arc;

use super::images::text;
use super::{Run, compile, has_kvm};

fn library(dir: &Path, value: u32) {
    let (source, made) = (dir.join("value.c"), dir.join("made.so"));
    std::fs::write(&source, format!("int value(void) {{ return {value}; }}")).unwrap();
    let done = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(&source).status();
    assert!(done.unwrap().success());
    std::fs::rename(made, dir.join("libvalue.so")).unwrap();
}

async fn say(image: &Arc<dyn Image>) -> String {
    let mut sandbox = image.clone().start().await.unwrap();
    text(&mut sandbox, b"").await
}

#[tokio::test]
async fn a_library_that_was_changed_after_the_deployment_is_used() {
    if !has_kvm("a_library_that_was_changed_after_the_deployment_is_used") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    library(dir.path(), 1);
    let here = dir.path().to_str().unwrap();
    let source = "#include <stdio.h>\nint value(void);\nint main(void) { printf(\"%d\\n\", value()); }";
    // gcc wants a library behind what uses it.
    let (flags, path) = (format!("-Wl,-rpath,{here}"), format!("-Wl,--no-as-needed,{here}/libvalue.so"));
    let program = compile(dir.path(), source, &[&flags, &path]);
    let mut run = Run::new().with_libraries();
    run.manifest.shares.push(Share { source: here.into(), target: here.into(), read_only: true });
    let image = run.prepare(&program).await.unwrap();
    assert_eq!(image.renewal(), Renewal::Restart);
    assert_eq!(say(&image).await, "1\n");
    let mut waiting = image.clone().start().await.unwrap();
    library(dir.path(), 2);
    assert_eq!(say(&image).await, "2\n");
    assert_eq!(text(&mut waiting, b"").await, "2\n", "what was started before the change, and runs after it");
    assert_eq!(text(&mut waiting, b"").await, "2\n");
}

#[tokio::test]
async fn every_start_has_its_own_randomness() {
    if !has_kvm("every_start_has_its_own_randomness") {
        return;
    }
    let source = r#"
        #include <stdio.h>
        #include <sys/auxv.h>
        int main(void) {
            unsigned long guard, *random = (unsigned long *)getauxval(AT_RANDOM);
            __asm__("mov %%fs:0x28, %0" : "=r"(guard));
            printf("%lx %lx %d\n", random[0], random[1], guard == (random[0] & ~0xfful));
        }"#;
    let dir = tempfile::tempdir().unwrap();
    for flags in [&["-static"][..], &[]] {
        let program = compile(dir.path(), source, flags);
        let run = if flags.is_empty() { Run::new().with_libraries() } else { Run::new() };
        let image = run.prepare(&program).await.unwrap();
        let (first, second) = (say(&image).await, say(&image).await);
        assert_ne!(first, second);
        assert!(
            first.ends_with(" 1\n") && second.ends_with(" 1\n"),
            "the stack protector's value is of it: {first}"
        );
    }
}
