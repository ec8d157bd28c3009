//! The page `/sessions` of the metrics address: what each session carried, as JSON. Only for callers on the machine
//! itself; sessions are no labels of metrics, because there are too many of them.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::context::Orders;
use crate::dataplane::{Command, Usage, UsagePage};

/// Answers `/sessions?from=N`: one page, and where the next begins.
///
/// # Errors
/// A text: the query is none, or the data plane has ended.
pub async fn page(orders: Orders, query: Option<String>) -> Result<String, String> {
    let from = match query.as_deref() {
        None | Some("") => 0,
        Some(query) => {
            let number = query.strip_prefix("from=").and_then(|number| number.parse().ok());
            number.ok_or_else(|| "ask for /sessions or /sessions?from=N".to_owned())?
        }
    };
    let (answer, page) = oneshot::channel();
    let ended = |_| "the data plane has ended".to_owned();
    orders.give(Command::Usage { from, answer }).await.map_err(|ended| ended.to_string())?;
    let page = page.await.map_err(ended)?;
    Ok(render(&page))
}

fn render(page: &UsagePage) -> String {
    let sessions: Vec<Value> = page.sessions.iter().map(one).collect();
    format!("{}\n", json!({ "sessions": sessions, "next": page.next }))
}

fn one(usage: &Usage) -> Value {
    json!({
        "session_id": usage.session.to_string(),
        "epoch": usage.epoch.0,
        "inner_addresses": usage.inner,
        "packets_up": usage.traffic.packets_up,
        "bytes_up": usage.traffic.bytes_up,
        "packets_down": usage.traffic.packets_down,
        "bytes_down": usage.traffic.bytes_down,
    })
}
