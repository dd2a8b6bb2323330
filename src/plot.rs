//! Bar charts as SVG, one below the other: numbers for a page or a ticket, nothing that moves.

/// One bar.
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// Drawn in the other colour.
    pub marked: bool,
}

/// Bars on one scale.
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

const WIDTH: usize = 720;
const LABELS: usize = 150;
/// Room for the numbers behind the bars.
const NUMBERS: usize = 90;
const ROW: usize = 22;
const MARGIN: usize = 20;

/// The charts under a common title.
pub fn svg(title: &str, panels: &[Panel]) -> String {
    let mut y = MARGIN + 14;
    let mut body = text(MARGIN, y, "bold", "start", title);
    for panel in panels {
        y += 2 * ROW;
        body.push_str(&text(MARGIN, y, "normal", "start", &panel.title));
        y += 10;
        let most = panel.bars.iter().map(|b| b.value).fold(0.0, f64::max);
        for bar in &panel.bars {
            let full = (WIDTH - 2 * MARGIN - LABELS - NUMBERS) as f64;
            let width = if most > 0.0 {
                full * bar.value / most
            } else {
                0.0
            };
            let (x, fill) = (
                MARGIN + LABELS,
                if bar.marked { "#1a7f37" } else { "#6e9bd1" },
            );
            let middle = y + 15;
            body.push_str(&text(x - 8, middle, "normal", "end", &bar.label));
            body.push_str(&format!(
                "<rect x=\"{x}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{fill}\"/>\n",
                y + 3,
                ROW - 6
            ));
            let end = x + width as usize + 6;
            let mark = if bar.marked { " recommended" } else { "" };
            let number = match bar.value {
                v if v < 100.0 => format!("{v:.1}"),
                v => format!("{v:.0}"),
            };
            body.push_str(&text(
                end,
                middle,
                "normal",
                "start",
                &format!("{number}{mark}"),
            ));
            y += ROW;
        }
    }
    let height = y + MARGIN;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn text(x: usize, y: usize, weight: &str, anchor: &str, what: &str) -> String {
    format!(
        "<text x=\"{x}\" y=\"{y}\" font-weight=\"{weight}\" text-anchor=\"{anchor}\">{}</text>\n",
        escaped(what)
    )
}

/// `text` as XML wants it; what XML cannot say at all becomes a question mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}
