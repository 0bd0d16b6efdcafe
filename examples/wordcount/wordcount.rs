//! The most frequent words of a text, as JSON.
//!
//! Reads the text line by line, so a long stream needs little memory. `TOP` in the environment says how many words
//! are wanted (default 10); the manifest allows an invocation to set it.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

struct Counts {
    lines: u64,
    words: u64,
    by_word: HashMap<String, u64>,
}

fn count(mut input: impl BufRead) -> io::Result<Counts> {
    let mut counts = Counts { lines: 0, words: 0, by_word: HashMap::new() };
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        counts.lines += 1;
        let text = String::from_utf8_lossy(&line);
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()) {
            counts.words += 1;
            *counts.by_word.entry(word.to_lowercase()).or_default() += 1;
        }
        line.clear();
    }
    Ok(counts)
}

/// The most frequent words first, equal ones by the alphabet, so that the reply is always the same.
fn top(by_word: HashMap<String, u64>, most: usize) -> Vec<(String, u64)> {
    let mut words: Vec<_> = by_word.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words.truncate(most);
    words
}

fn main() -> io::Result<()> {
    let most = match std::env::var("TOP").map(|text| text.parse()) {
        Err(_) => 10,
        Ok(Ok(most)) => most,
        Ok(Err(_)) => {
            eprintln!("TOP must be a number of words");
            std::process::exit(2);
        }
    };
    let counts = count(io::stdin().lock())?;
    eprintln!("{} lines, {} distinct words", counts.lines, counts.by_word.len());
    let mut out = io::BufWriter::new(io::stdout().lock());
    write!(out, "{{\"lines\":{},\"words\":{},\"top\":[", counts.lines, counts.words)?;
    for (i, (word, n)) in top(counts.by_word, most).iter().enumerate() {
        // A word holds only letters, digits and apostrophes: nothing that JSON would want escaped.
        write!(out, "{}{{\"word\":\"{}\",\"count\":{}}}", if i > 0 { "," } else { "" }, word, n)?;
    }
    writeln!(out, "]}}")?;
    out.flush()
}
