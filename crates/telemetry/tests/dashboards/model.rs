//! What of Grafana's classic dashboard model (<https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/>,
//! schema version 39) the dashboards use: names, types and values. Anything else is a fault.
#![expect(dead_code, reason = "fields are read by the parser, which checks their names and types")]

use std::collections::BTreeSet;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Dashboard {
    uid: String,
    title: String,
    tags: Vec<String>,
    schema_version: u32,
    version: u32,
    editable: bool,
    graph_tooltip: u8,
    refresh: String,
    timezone: String,
    time: Time,
    templating: Templating,
    links: Vec<Link>,
    annotations: Annotations,
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Time {
    from: String,
    to: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    list: [(); 0],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", tag = "type")]
enum Variable {
    #[serde(rename_all = "camelCase")]
    Datasource { name: String, label: String, query: String, current: Choice<String> },
    #[serde(rename_all = "camelCase")]
    Query {
        name: String,
        label: String,
        datasource: Source,
        query: VariableQuery,
        refresh: u8,
        include_all: bool,
        multi: bool,
        all_value: String,
        current: Choice<Vec<String>>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VariableQuery {
    query: String,
    ref_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice<T> {
    selected: bool,
    text: T,
    value: T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    r#type: String,
    uid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Link {
    title: String,
    r#type: LinkType,
    tags: Vec<String>,
    as_dropdown: bool,
    keep_time: bool,
    include_vars: bool,
    target_blank: bool,
    icon: String,
    tooltip: String,
    url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum LinkType {
    Dashboards,
    Link,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Panel {
    id: u32,
    title: String,
    description: String,
    datasource: Source,
    grid_pos: Place,
    field_config: FieldConfig,
    targets: Vec<Target>,
    r#type: PanelType,
    /// Depends on the type; each plugin fills in what is not there.
    options: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PanelType {
    Timeseries,
    Stat,
    Heatmap,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct Place {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldConfig {
    defaults: Defaults,
    overrides: [(); 0],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    unit: String,
    min: Option<f64>,
    custom: Option<Custom>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Custom {
    line_width: u8,
    fill_opacity: u8,
    show_points: ShowPoints,
    stacking: Stacking,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ShowPoints {
    Auto,
    Never,
    Always,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stacking {
    mode: StackingMode,
    group: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StackingMode {
    None,
    Normal,
    Percent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Target {
    ref_id: String,
    datasource: Source,
    expr: String,
    legend_format: String,
    format: TargetFormat,
    editor_mode: EditorMode,
    range: bool,
    instant: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum TargetFormat {
    TimeSeries,
    Table,
    Heatmap,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum EditorMode {
    Code,
    Builder,
}

/// What is wrong with a dashboard, one sentence each.
pub(crate) fn faults(text: &str) -> Vec<String> {
    let board: Dashboard = match serde_json::from_str(text) {
        Ok(board) => board,
        Err(error) => return vec![error.to_string()],
    };
    let mut faults = Vec::new();
    if !(1..=40).contains(&board.uid.len()) {
        faults.push(format!("uid {} is not 1 to 40 characters", board.uid));
    }
    let ids: BTreeSet<u32> = board.panels.iter().map(|panel| panel.id).collect();
    if ids.len() != board.panels.len() || ids.contains(&0) {
        faults.push("two panels have one id, or one has none".to_owned());
    }
    for (n, panel) in board.panels.iter().enumerate() {
        let place = panel.grid_pos;
        if place.w == 0 || place.h == 0 || place.x + place.w > 24 {
            faults.push(format!("{} does not fit into 24 columns", panel.title));
        }
        let covers = |other: &Panel| {
            let other = other.grid_pos;
            place.x < other.x + other.w
                && other.x < place.x + place.w
                && place.y < other.y + other.h
                && other.y < place.y + place.h
        };
        if let Some(other) = board.panels[..n].iter().find(|other| covers(other)) {
            faults.push(format!("{} lies on {}", panel.title, other.title));
        }
        let names: BTreeSet<&str> = panel.targets.iter().map(|target| target.ref_id.as_str()).collect();
        if names.len() != panel.targets.len() || names.is_empty() {
            faults.push(format!("queries of {} share a name, or there are none", panel.title));
        }
    }
    faults
}
