//! A sign of life on a terminal for what takes longer than a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// Shown from one second after it was made until it is dropped.
pub(crate) struct Progress {
    task: tokio::task::JoinHandle<()>,
    bar: ProgressBar,
}

impl Progress {
    /// Shows how many of `total` bytes were sent, then that the gateway prepares the function.
    pub(crate) fn upload(name: &str, sent: Arc<AtomicU64>, total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let shown = bar.clone();
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if !output::interactive() {
                return;
            }
            shown.set_draw_target(ProgressDrawTarget::stderr());
            loop {
                let done = sent.load(Ordering::Relaxed);
                let prepares = total.is_some_and(|total| done >= total);
                shown.set_style(style(prepares));
                shown.set_message(if prepares {
                    format!("preparing {name}")
                } else {
                    format!("sending {name}")
                });
                shown.set_position(done);
                shown.tick();
                tokio::time::sleep(TICK).await;
            }
        });
        Self { task, bar }
    }

    /// Shows that something unmeasured goes on.
    pub(super) fn wait(what: &str) -> Self {
        Self::upload(what, Arc::new(AtomicU64::new(0)), Some(0))
    }
}

fn style(prepares: bool) -> ProgressStyle {
    let template = match prepares {
        true => "{spinner} {msg} ({elapsed})",
        false => "{spinner} {msg} {bytes} of {total_bytes} at {binary_bytes_per_sec}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}
