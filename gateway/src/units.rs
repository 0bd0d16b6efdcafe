//! Sizes and durations as people write them: `64MiB`, `250ms`. Used by `novum.toml`, by flags and by what is printed.

use std::time::Duration;

/// The text is not a size or a duration; the message says what is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

const SIZES: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];
const DURATIONS: [(&str, f64); 6] =
    [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

/// Parses a size in bytes: a whole number, then nothing, `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// Anything else, with what is possible.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError(match unit {
            "K" | "k" | "KB" | "kB" | "Ki" => format!("write {text:?} as \"{number}KiB\""),
            "M" | "m" | "MB" | "mb" | "Mi" => format!("write {text:?} as \"{number}MiB\""),
            "G" | "g" | "GB" | "gb" | "Gi" => format!("write {text:?} as \"{number}GiB\""),
            _ => format!("{text:?} is not a size; write a number with B, KiB, MiB or GiB, such as \"64MiB\""),
        }));
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*factor)).ok_or_else(|| {
        UnitError(format!("{text:?} is not a size; write a whole number with a unit, such as \"64MiB\""))
    })
}

/// Parses a duration: a number, then `us`, `ms`, `s`, `m` or `h`.
///
/// # Errors
/// Anything else, with what is possible.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let refuse = || {
        UnitError(format!(
            "{text:?} is not a duration; write a number with us, ms, s, m or h, such as \"5s\" or \"250ms\""
        ))
    };
    let (number, unit) = split(text);
    let (_, factor) = DURATIONS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
    let seconds = number.parse::<f64>().map_err(|_| refuse())? * factor;
    Duration::try_from_secs_f64(seconds).map_err(|_| refuse())
}

/// The leading digits (and point), and the rest without the blank between them.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `64 MiB`, `1.5 KiB`, `12 B`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let Some((unit, factor)) = SIZES[1..4].iter().rev().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    if bytes.is_multiple_of(*factor) {
        return format!("{} {unit}", bytes / factor);
    }
    #[allow(clippy::cast_precision_loss)]
    let value = bytes as f64 / *factor as f64;
    format!("{value:.1} {unit}")
}

/// Three digits and a unit: `812 ns`, `4.21 us`, `31.0 ms`, `2.50 s`, `12.0 min`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let (divisor, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1e3, "us"),
        1_000_000..1_000_000_000 => (1e6, "ms"),
        1_000_000_000..120_000_000_000 => (1e9, "s"),
        120_000_000_000..7_200_000_000_000 => (60e9, "min"),
        _ => (3600e9, "h"),
    };
    #[allow(clippy::cast_precision_loss)]
    let value = ns as f64 / divisor;
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("5B", 5), ("64MiB", 64 << 20), (" 2 GiB ", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert!(parse_size("64MB").unwrap_err().to_string().contains("\"64MiB\""));
        for bad in ["", "MiB", "1.5MiB", "-1", "64 parsecs", "99999999999999999999", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, ms) in
            [("250ms", 250), ("5s", 5_000), ("1.5 s", 1_500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration("7us"), Ok(Duration::from_micros(7)));
        for bad in ["", "5", "s", "5 sec", "-1s", "1e9s", "9999999999999999999999h", "1.2.3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_keeps_three_digits() {
        for (ns, text) in [
            (812, "812 ns"),
            (4_210, "4.21 us"),
            (31_000_000, "31.0 ms"),
            (999_960, "1000 us"),
            (2_500_000_000, "2.50 s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(ns)), text);
        }
        for (bytes, text) in [(12, "12 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB")] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn printed_durations_never_panic(ns in any::<u64>()) {
            prop_assert!(!format_duration(Duration::from_nanos(ns)).is_empty());
        }
    }
}
