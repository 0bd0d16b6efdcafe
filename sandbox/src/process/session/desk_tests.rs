use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::desk::Desk;
use crate::process::control::Control;
use crate::process::files::{Files, FilesConfig, Write};
use crate::session::SessionError;

/// Far longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn desk() -> Arc<Desk> {
    Desk::new(Files::new(&FilesConfig::new()).unwrap())
}

fn write(files: &mut Files, bytes: usize) {
    let write = Write { path: b"/file", flags: libc::O_CREAT, mode: 0o644, position: Some(0) };
    files.write_piece(write, &vec![1; bytes]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_on_a_thread_for_a_slow_file_operation() {
    let desk = desk();
    let (begun, has_begun) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (slow, released) = (desk.clone(), parking_lot::Mutex::new(released));
    let slow = tokio::spawn(async move {
        slow.with(move |files| {
            begun.send(()).unwrap();
            released.lock().recv_timeout(PATIENCE).unwrap();
            write(files, 3 << 20);
        })
        .await
    });
    has_begun.recv_timeout(PATIENCE).unwrap();
    let other = desk.clone();
    let at_once = tokio::spawn(async move {
        assert!(other.held_bytes() < 3 << 20);
        other.set_paused(true).await;
        let control = Control::new().unwrap();
        assert!(matches!(other.take(&control).await, Err(SessionError::Busy(_))));
        other.set_paused(false).await;
        assert!(other.running().is_none());
        // A program waits for the files without a thread.
        let waiting = tokio::time::timeout(Duration::from_millis(50), other.take(&control));
        assert!(waiting.await.is_err(), "two have the files");
    });
    tokio::time::timeout(PATIENCE, at_once).await.expect("waits for the files").unwrap();
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
    // Who was asked meanwhile said it when it was done.
    assert!(desk.held_bytes() >= 3 << 20);
    desk.take(&Control::new().unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_a_program_wrote_is_counted_when_it_is_over() {
    let desk = desk();
    let before = desk.held_bytes();
    let control = Control::new().unwrap();
    let mut files = desk.take(&control).await.unwrap();
    // Nobody answers: the program ends before it looks.
    assert_eq!(desk.held_bytes(), before);
    write(&mut files, 5 << 20);
    control.close();
    desk.put_back(Some(files));
    // A second program has them; what it is asked is not what the first one never answered.
    let second = Control::new().unwrap();
    let mut files = desk.take(&second).await.unwrap();
    assert!(desk.held_bytes() >= 5 << 20);
    write(&mut files, 6 << 20);
    second.close();
    assert!(!second.visit(Box::new(|_| {})));
    assert!(desk.held_bytes() >= 5 << 20);
    desk.put_back(Some(files));
    assert!(desk.held_bytes() >= 6 << 20);
}

#[tokio::test]
async fn files_come_back_from_work_that_panics() {
    let desk = desk();
    let died = desk.with(|_: &mut Files| panic!("on purpose")).await;
    assert!(died.is_err());
    assert!(desk.with_idle(|files| files.held_bytes()).await.is_ok());
}
