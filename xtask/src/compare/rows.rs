//! The rows of a comparison: one for each operation, number of clients and target, with the median of all rounds.

use serde_json::{Map, Value, json};

use super::Target;

/// The figures that are taken from each run, in the order of the table, with their column heads and digits.
const FIGURES: [(&str, &str, usize); 8] = [
    ("ops_per_second", "ops/s", 0),
    ("p50_us", "p50 us", 0),
    ("p99_us", "p99 us", 0),
    ("p999_us", "p99.9 us", 0),
    ("server_cpu_us_per_op", "CPU us/op", 1),
    ("flushes_per_second", "flushes/s", 0),
    ("disk_bytes_per_user_byte", "disk/user B", 2),
    ("server_memory_bytes", "MiB", 0),
];

/// One row.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    operation: String,
    clients: u32,
    target: Target,
    value_size: u32,
    /// By figure, of every round that had it.
    figures: [Vec<f64>; FIGURES.len()],
    errors: u64,
}

/// Adds a run's result to the row that it belongs to.
pub(crate) fn add(
    rows: &mut Vec<Row>,
    (operation, clients, target): (&str, u32, Target),
    value_size: u32,
    result: &Value,
) -> Result<(), String> {
    if result.get("values_wrong") != Some(&json!(0)) {
        return Err(format!("{} answered reads wrongly: {result}", target.name()));
    }
    let found = rows
        .iter()
        .position(|row| (row.operation.as_str(), row.clients, row.target) == (operation, clients, target));
    let position = found.unwrap_or_else(|| {
        let operation = operation.to_owned();
        rows.push(Row { operation, clients, target, value_size, figures: Default::default(), errors: 0 });
        rows.len() - 1
    });
    let row = &mut rows[position];
    for ((name, ..), values) in FIGURES.iter().zip(&mut row.figures) {
        values.extend(result.get(name).and_then(Value::as_f64));
    }
    let errors = result.get("errors").and_then(Value::as_object);
    row.errors += errors.into_iter().flat_map(Map::values).filter_map(Value::as_u64).sum::<u64>();
    Ok(())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The rows as JSON.
pub(crate) fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|row| {
            let mut fields = Map::from_iter([
                ("target".to_owned(), json!(row.target.name())),
                ("operation".to_owned(), json!(row.operation)),
                ("clients".to_owned(), json!(row.clients)),
                ("value_size".to_owned(), json!(row.value_size)),
                ("errors".to_owned(), json!(row.errors)),
                ("rounds".to_owned(), json!(row.figures[0].len())),
            ]);
            for ((name, ..), values) in FIGURES.iter().zip(&row.figures) {
                fields.insert((*name).to_owned(), json!(median(values)));
            }
            Value::Object(fields)
        })
        .collect()
}

/// The rows for people.
pub(crate) fn print_table(rows: &[Row]) {
    print!("{:<10} {:>7} {:<10}", "operation", "clients", "target");
    for (_, head, _) in FIGURES {
        print!(" {head:>11}");
    }
    println!(" {:>7}", "errors");
    for row in rows {
        print!("{:<10} {:>7} {:<10}", row.operation, row.clients, row.target.name());
        for ((name, _, digits), values) in FIGURES.iter().zip(&row.figures) {
            let figure = median(values).map(|figure| match *name {
                "server_memory_bytes" => figure / f64::from(1 << 20),
                _ => figure,
            });
            print!(" {:>11}", figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}")));
        }
        println!(" {:>7}", row.errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(rate: f64, wrong: u64) -> Value {
        json!({ "ops_per_second": rate, "p50_us": 5, "values_wrong": wrong, "errors": { "TIMEOUT": 2 } })
    }

    #[test]
    fn rows_hold_the_median_and_the_fields_that_are_promised() {
        let mut rows = Vec::new();
        for rate in [30.0, 10.0, 20.0] {
            add(&mut rows, ("put", 64, Target::Etcd), 100, &result(rate, 0)).unwrap();
        }
        add(&mut rows, ("put", 64, Target::Krita), 100, &result(7.0, 0)).unwrap();
        assert!(add(&mut rows, ("put", 64, Target::Krita), 100, &result(7.0, 1)).is_err());
        let json = json(&rows);
        let first = &json[0];
        assert_eq!((&first["target"], &first["operation"]), (&json!("etcd"), &json!("put")));
        assert_eq!((&first["ops_per_second"], &first["errors"]), (&json!(20.0), &json!(6)));
        assert_eq!((json.as_array().unwrap().len(), &json[1]["target"]), (2, &json!("krita")));
        for field in [
            "target",
            "operation",
            "clients",
            "value_size",
            "ops_per_second",
            "p50_us",
            "p99_us",
            "p999_us",
            "server_cpu_us_per_op",
            "flushes_per_second",
            "disk_bytes_per_user_byte",
        ] {
            assert!(first.get(field).is_some(), "{field}");
        }
        assert_eq!(first["flushes_per_second"], Value::Null, "what was not measured is not made up");
    }
}
