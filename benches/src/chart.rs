//! The chart: requests per second above (longer is better), latency below (lower is better), one group for each
//! number of callers.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    Circle, DrawingArea, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle, SVGBackend, Text,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle, WHITE};

use crate::gateway::{Cell, Results, Target};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: i32 = 900;
const HEIGHT: i32 = 720;
const LEFT: i32 = 70;
const RIGHT: i32 = WIDTH - 20;
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(222, 222, 222);
const FONT: &str = "sans-serif";

/// One half of the picture: where values fall.
struct Panel {
    top: i32,
    bottom: i32,
    title: &'static str,
    /// Values at the bottom and at the top.
    range: (f64, f64),
    /// Equal ratios, not equal differences, are equal heights.
    log: bool,
}

impl Panel {
    fn y(&self, value: f64) -> i32 {
        let scale = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let (low, high) = (scale(self.range.0), scale(self.range.1));
        let part = ((scale(value) - low) / (high - low)).clamp(0.0, 1.0);
        self.bottom - (part * f64::from(self.bottom - self.top)).round() as i32
    }

    fn grid_values(&self) -> Vec<f64> {
        if self.log {
            let steps = |decade: f64| [1.0, 2.0, 5.0].map(|step| step * decade);
            let all = (0..9).flat_map(|power| steps(10f64.powi(power)));
            return all.filter(|v| (self.range.0..=self.range.1).contains(v)).collect();
        }
        (0..=5).map(|i| self.range.1 * f64::from(i) / 5.0).collect()
    }
}

/// The chart as SVG text.
///
/// # Errors
/// Where plotters cannot draw.
pub fn draw(results: &Results) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, HEIGHT as u32)).into_drawing_area();
        // A drawing error holds a backend's private type: only its text leaves here.
        paint(&area, results).map_err(|error| anyhow!("drawing the chart: {error}"))?;
    }
    Ok(svg)
}

type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn paint(area: &Area<'_>, results: &Results) -> DrawResult {
    area.fill(&WHITE)?;
    text(area, (20, 12), 19, HPos::Left, "The gateway over loopback and what bounds it")?;
    text(area, (20, 38), 12, HPos::Left, &results.host.line())?;
    legend(area)?;
    let rps = |cell: &Cell| cell.median(|run| run.rps());
    let top = round_up(results.cells.iter().map(rps).fold(0.0, f64::max));
    let above = Panel { top: 112, bottom: 370, title: "requests per second", range: (0.0, top), log: false };
    frame(area, &above, results)?;
    for_each(results, |x, width, cell| bar(area, &above, x, width, cell))?;
    let values = results.cells.iter().flat_map(|cell| [p50(cell), p99(cell)]);
    let (low, high) = values.fold((f64::MAX, 0f64), |(low, high), v| (low.min(v), high.max(v)));
    let range = (low.max(1.0) / 1.5, high.max(2.0) * 1.5);
    let title = "latency in microseconds: p50 (dot) up to p99 (line), logarithmic";
    let below = Panel { top: 430, bottom: 680, title, range, log: true };
    frame(area, &below, results)?;
    for_each(results, |x, width, cell| whisker(area, &below, x + width / 2, cell))?;
    area.present()?;
    Ok(())
}

fn p50(cell: &Cell) -> f64 {
    cell.median(|run| run.p50_us as f64)
}

fn p99(cell: &Cell) -> f64 {
    cell.median(|run| run.p99_us as f64)
}

/// A round number above the value, with room for its label.
fn round_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0];
    steps.iter().map(|step| step * decade).find(|v| *v >= value * 1.05).unwrap_or(20.0 * decade)
}

/// Floors in greys, novum in colours that are told apart by everybody.
fn colour(target: Target) -> RGBColor {
    match target {
        Target::Tonic => RGBColor(190, 190, 190),
        Target::Wasmtime => RGBColor(120, 120, 120),
        Target::Empty => RGBColor(0, 114, 178),
        Target::Echo => RGBColor(230, 159, 0),
    }
}

fn style(size: i32, horizontal: HPos) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(&INK).pos(Pos::new(horizontal, VPos::Top))
}

fn text(area: &Area<'_>, at: (i32, i32), size: i32, horizontal: HPos, words: &str) -> DrawResult {
    Ok(area.draw(&Text::new(words.to_owned(), at, style(size, horizontal)))?)
}

fn legend(area: &Area<'_>) -> DrawResult {
    let mut x = 20;
    for target in Target::ALL {
        area.draw(&Rectangle::new([(x, 64), (x + 12, 76)], colour(target).filled()))?;
        text(area, (x + 18, 62), 13, HPos::Left, target.title())?;
        x += 30 + 7 * target.title().len() as i32;
    }
    Ok(())
}

/// Title, grid with its values, and the groups' names.
fn frame(area: &Area<'_>, panel: &Panel, results: &Results) -> DrawResult {
    text(area, (LEFT, panel.top - 22), 14, HPos::Left, panel.title)?;
    for value in panel.grid_values() {
        let y = panel.y(value);
        area.draw(&PathElement::new(vec![(LEFT, y), (RIGHT, y)], GRID))?;
        text(area, (LEFT - 8, y - 7), 12, HPos::Right, &short(value))?;
    }
    let callers = results.callers();
    let width = (RIGHT - LEFT) / callers.len().max(1) as i32;
    for (i, callers) in (0..).zip(callers) {
        let name = if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") };
        text(area, (LEFT + width * i + width / 2, panel.bottom + 8), 13, HPos::Center, &name)?;
    }
    area.draw(&PathElement::new(vec![(LEFT, panel.bottom), (RIGHT, panel.bottom)], INK))?;
    Ok(())
}

/// Calls `paint(left edge, width, cell)` for every cell's column.
fn for_each(results: &Results, paint: impl Fn(i32, i32, &Cell) -> DrawResult) -> DrawResult {
    let callers = results.callers();
    let group = (RIGHT - LEFT) / callers.len().max(1) as i32;
    let column = group * 8 / 10 / Target::ALL.len() as i32;
    for (i, callers) in (0..).zip(callers) {
        for (j, target) in (0..).zip(Target::ALL) {
            if let Some(cell) = results.cell(target, callers) {
                paint(LEFT + group * i + group / 10 + column * j, column, cell)?;
            }
        }
    }
    Ok(())
}

fn bar(area: &Area<'_>, panel: &Panel, x: i32, width: i32, cell: &Cell) -> DrawResult {
    let value = cell.median(|run| run.rps());
    let corners = [(x + 2, panel.y(value)), (x + width - 2, panel.bottom)];
    area.draw(&Rectangle::new(corners, colour(cell.target).filled()))?;
    text(area, (x + width / 2, panel.y(value) - 15), 12, HPos::Center, &short(value))
}

fn whisker(area: &Area<'_>, panel: &Panel, x: i32, cell: &Cell) -> DrawResult {
    let (low, high) = (panel.y(p50(cell)), panel.y(p99(cell)));
    let line = colour(cell.target).stroke_width(4);
    area.draw(&PathElement::new(vec![(x, low), (x, high)], line))?;
    area.draw(&PathElement::new(vec![(x - 7, high), (x + 7, high)], line))?;
    area.draw(&Circle::new((x, low), 6, colour(cell.target).filled()))?;
    text(area, (x + 10, low - 6), 12, HPos::Left, &short(p50(cell)))?;
    text(area, (x, high - 16), 12, HPos::Center, &short(p99(cell)))
}

/// `950`, `1.5k`, `158k`
fn short(value: f64) -> String {
    match value {
        v if v >= 100_000.0 => format!("{:.0}k", v / 1000.0),
        v if v >= 1000.0 => format!("{}k", (v / 100.0).round() / 10.0),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::results;

    #[test]
    fn the_chart_names_every_target_and_group() {
        let svg = draw(&results()).unwrap();
        for target in Target::ALL {
            assert!(svg.contains(target.title()), "{}", target.title());
        }
        assert!(svg.contains("1 caller\n") && svg.contains("64 callers\n"), "{svg}");
    }

    #[test]
    fn values_are_shortened_for_reading() {
        assert_eq!(
            [0.0, 950.4, 1549.0, 54_321.0, 158_400.0].map(short),
            ["0", "950", "1.5k", "54.3k", "158k"]
        );
    }

    #[test]
    fn the_scale_holds_its_largest_value() {
        for value in [1.0, 99.0, 105_000.0, 158_000.0, 999_999.0] {
            assert!(round_up(value) >= value * 1.05, "{value}");
        }
    }

    #[test]
    fn a_logarithmic_panel_gives_equal_ratios_equal_heights() {
        let panel = Panel { top: 0, bottom: 300, title: "", range: (1.0, 1000.0), log: true };
        assert_eq!([1.0, 10.0, 100.0, 1000.0].map(|v| panel.y(v)), [300, 200, 100, 0]);
    }
}
