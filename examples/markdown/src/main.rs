//! Markdown in, HTML out (CommonMark with tables, footnotes, strikethrough and task lists).
//!
//! Raw HTML in the text is shown as text, so that what anybody wrote can stand in a page.

use std::io::{self, Read, Write};

use pulldown_cmark::{html, Event, Options, Parser};

fn render(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS;
    let events = Parser::new_ext(markdown, options).map(|event| match event {
        Event::Html(raw) => Event::Text(raw),
        other => other,
    });
    let mut page = String::with_capacity(markdown.len() * 3 / 2);
    html::push_html(&mut page, events);
    page
}

fn main() -> io::Result<()> {
    let mut markdown = String::new();
    io::stdin().read_to_string(&mut markdown)?;
    io::stdout().write_all(render(&markdown).as_bytes())
}
