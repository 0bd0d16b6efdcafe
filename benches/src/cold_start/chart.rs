//! The chart: one line for each way of starting each program, from its p50 (dot) to its p99 (bar), on a logarithmic
//! axis of time; the shorter and the further left, the better.

use anyhow::{Result, anyhow};
use novum_sandbox::EngineKind;
use plotters::coord::Shift;
use plotters::prelude::{
    Circle, DrawingArea, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle, SVGBackend, Text,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle, WHITE};

use super::{Cell, Program, Results, Way};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), Box<dyn std::error::Error>>;

const WIDTH: i32 = 1000;
const LEFT: i32 = 290;
const RIGHT: i32 = WIDTH - 30;
const TOP: i32 = 110;
const ROW: i32 = 24;
const HEADING: i32 = 34;
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(222, 222, 222);
const BAND: RGBColor = RGBColor(246, 246, 246);
const FONT: &str = "sans-serif";

/// The axis in microseconds.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Whole decades around all values.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::MAX, 1.0f64), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = (low.clamp(0.1, 1e9).log10().floor(), high.log10().ceil());
        Self { low: 10f64.powf(low), high: 10f64.powf(high.max(low + 1.0)) }
    }

    fn x(&self, micros: f64) -> i32 {
        let part = (micros.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + (part.min(1.0) * f64::from(RIGHT - LEFT)).round() as i32
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low, self.high);
        (0..).map(move |power| low * 10f64.powi(power)).take_while(move |v| *v <= high * 1.001)
    }
}

/// The chart as SVG text.
///
/// # Errors
/// Where plotters cannot draw.
pub(super) fn draw(results: &Results) -> Result<String> {
    let groups: Vec<_> =
        Program::ALL.into_iter().map(|program| (program, cells_of(results, program))).collect();
    let groups: Vec<_> = groups.into_iter().filter(|(_, cells)| !cells.is_empty()).collect();
    let rows: usize = groups.iter().map(|(_, cells)| cells.len()).sum();
    let height = TOP + ROW * rows as i32 + HEADING * groups.len() as i32 + 50;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        // A drawing error holds a backend's private type: only its text leaves here.
        paint(&area, results, &groups, height).map_err(|error| anyhow!("drawing the chart: {error}"))?;
    }
    Ok(svg)
}

fn cells_of(results: &Results, program: Program) -> Vec<&Cell> {
    results.cells.iter().filter(|cell| cell.program == program).collect()
}

fn paint(area: &Area<'_>, results: &Results, groups: &[(Program, Vec<&Cell>)], height: i32) -> DrawResult {
    area.fill(&WHITE)?;
    text(area, (20, 12), 20, HPos::Left, &INK, "From nothing, or from the image, to the complete reply")?;
    let note = "p50 (dot, number) up to p99 (bar); one after the other; logarithmic; further left is better";
    text(area, (20, 40), 13, HPos::Left, &INK, note)?;
    let build = if results.development_build { "DEVELOPMENT BUILD; " } else { "" };
    let place =
        format!("{build}{} samples each (slow ones: fewer); {}", results.samples, results.host.line());
    text(area, (20, 60), 11, HPos::Left, &FAINT, &place)?;
    let all = groups.iter().flat_map(|(_, cells)| cells.iter());
    let axis = Axis::around(all.flat_map(|cell| [cell.alone.quantile(0.5), cell.alone.quantile(0.99)]));
    grid(area, &axis, height - 40)?;
    let mut y = TOP;
    for (program, cells) in groups {
        let corners = [(10, y + 6), (WIDTH - 10, y + HEADING - 6)];
        area.draw(&Rectangle::new(corners, BAND.filled()))?;
        text(area, (20, y + 9), 15, HPos::Left, &INK, program.title())?;
        y += HEADING;
        for cell in cells {
            line(area, &axis, y + ROW / 2, cell)?;
            y += ROW;
        }
    }
    area.present()?;
    Ok(())
}

fn grid(area: &Area<'_>, axis: &Axis, bottom: i32) -> DrawResult {
    for decade in axis.decades() {
        let x = axis.x(decade);
        area.draw(&PathElement::new(vec![(x, TOP - 6), (x, bottom)], GRID))?;
        text(area, (x, TOP - 24), 12, HPos::Center, &FAINT, &time(decade))?;
        text(area, (x, bottom + 8), 12, HPos::Center, &FAINT, &time(decade))?;
    }
    Ok(())
}

fn line(area: &Area<'_>, axis: &Axis, y: i32, cell: &Cell) -> DrawResult {
    let (p50, p99) = (cell.alone.quantile(0.5), cell.alone.quantile(0.99));
    let (from, to) = (axis.x(p50), axis.x(p99));
    let colour = colour(cell.way);
    text(area, (LEFT - 12, y - 6), 13, HPos::Right, &INK, &cell.way.title())?;
    area.draw(&PathElement::new(vec![(from, y), (to, y)], colour.stroke_width(3)))?;
    area.draw(&PathElement::new(vec![(to, y - 5), (to, y + 5)], colour.stroke_width(3)))?;
    area.draw(&Circle::new((from, y), 6, colour.filled()))?;
    // Where there is no room on the right, on the left.
    let (at, side) = if to + 60 < RIGHT { (to + 9, HPos::Left) } else { (from - 11, HPos::Right) };
    text(area, (at, y - 6), 12, side, &INK, &time(p50))
}

/// Floors and natives in greys, novum in colours that are told apart by everybody.
fn colour(way: Way) -> RGBColor {
    match way {
        Way::Kvm | Way::Exit | Way::Wasmtime => RGBColor(170, 170, 170),
        Way::Spawn | Way::Fork => RGBColor(110, 110, 110),
        Way::Full(_) => RGBColor(213, 94, 0),
        Way::Restore(EngineKind::Wasm) | Way::Start(EngineKind::Wasm) | Way::Call(EngineKind::Wasm) => {
            RGBColor(0, 158, 115)
        }
        Way::Restore(_) | Way::Create(_) | Way::Branch(_) | Way::Start(_) => RGBColor(0, 114, 178),
        Way::Reset(_) | Way::Call(_) => RGBColor(86, 180, 233),
    }
}

/// `4.1 us`, `310 us`, `1.5 ms`, `2 s`
fn time(micros: f64) -> String {
    let (value, unit) = match micros {
        v if v < 999.5 => (v, "us"),
        v if v < 999_500.0 => (v / 1e3, "ms"),
        v => (v / 1e6, "s"),
    };
    let digits = usize::from(value < 9.95 && (value - value.round()).abs() > 0.04);
    format!("{value:.digits$} {unit}")
}

fn text(
    area: &Area<'_>,
    at: (i32, i32),
    size: i32,
    horizontal: HPos,
    colour: &RGBColor,
    words: &str,
) -> DrawResult {
    let style = TextStyle::from((FONT, size).into_font()).color(colour).pos(Pos::new(horizontal, VPos::Top));
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold_start::report::tests::results;

    #[test]
    fn the_chart_names_every_program_and_way() {
        let results = results();
        let svg = draw(&results).unwrap();
        for cell in &results.cells {
            assert!(svg.contains(cell.program.title()) && svg.contains(&cell.way.title()), "{:?}", cell.way);
        }
        assert!(svg.contains("10 us\n") && svg.contains("10 ms\n"), "{svg}");
    }

    #[test]
    fn equal_ratios_are_equal_widths() {
        let axis = Axis::around([12.0, 3400.0].into_iter());
        assert_eq!((axis.low, axis.high), (10.0, 10_000.0));
        let steps = [10.0, 100.0, 1000.0, 10_000.0].map(|v| axis.x(v));
        assert_eq!((steps[0], steps[3]), (LEFT, RIGHT));
        assert_eq!(steps[1] - steps[0], steps[3] - steps[2]);
    }

    #[test]
    fn times_are_short() {
        let times = [0.14, 4.13, 57.2, 310.4, 1000.0, 1540.0, 65_000.0, 2e6].map(time);
        assert_eq!(times, ["0.1 us", "4.1 us", "57 us", "310 us", "1 ms", "1.5 ms", "65 ms", "2 s"]);
    }
}
