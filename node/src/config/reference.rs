//! `docs/configuration.md`, made from the table of keys. A test compares the file with this text.

use std::fmt::Write;

use super::keys::{KEYS, Key};

const HEAD: &str = "\
# Configuration

<!-- Made from node/src/config/keys.rs; KRITA_BLESS=1 cargo test -p krita-node configuration_reference makes it. -->

A node reads `krita.yaml`, then variables, then flags; the later wins over the earlier. Each key below is a line of
`krita.yaml` (`port: 8080`), a variable (`KRITA_PORT=8080`) and a flag of `kritad` (`--port 8080`).

```yaml
cluster_name: \"mycluster\"
node_id: \"node1\"
peers:
  - address: \"127.0.0.1:8080\"
  - address: \"127.0.0.1:8081\"
  - address: \"127.0.0.1:8082\"
data_directory: \"/var/lib/krita\"
port: 8080
```

- A file that does not parse, an unknown key or a value out of bounds is an error that says where and what to do; the
  node does not start.
- A relative path counts from the folder of `krita.yaml` if it stands there or is a default, else from the working
  directory.
- Sizes are in bytes, or with KiB, MiB or GiB.
- Keys marked *running* may be changed while the node runs; the others take effect at its next start.

| key | values | default | change | meaning |
|---|---|---|---|---|
";

/// The text of `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for key in &KEYS {
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            key.name,
            key.form(),
            default_of(key),
            if key.dynamic { "running" } else { "restart" },
            key.help
        )
        .expect("writing to a String cannot fail");
    }
    text
}

fn default_of(key: &Key) -> String {
    match key.default {
        Some("") => "empty".to_owned(),
        Some(default) => format!("`{default}`"),
        None if key.optional => "unset".to_owned(),
        None => "must be given".to_owned(),
    }
}
