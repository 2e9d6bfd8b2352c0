//! kafka-configs.

use crate::stage::Stage;
use crate::tool::{CONFIGS, refused, run};

#[test]
fn quotas_and_accounts_are_none_and_cannot_be_made() {
    let stage = Stage::start();
    let bootstrap = stage.bootstrap();
    let describe =
        |kind| run(CONFIGS, &["--bootstrap-server", &bootstrap, "--describe", "--entity-type", kind]);
    for kind in ["users", "clients", "ips", "client-metrics", "groups"] {
        assert_eq!(describe(kind).text, "", "{kind}");
    }
    for (setting, message) in [
        ("producer_byte_rate=5", "this broker has no quotas"),
        ("SCRAM-SHA-256=[password=secret]", "this broker keeps no accounts"),
    ] {
        let args = ["--bootstrap-server", &bootstrap, "--alter", "--entity-type", "users"];
        let args = [&args[..], &["--entity-name", "ann", "--add-config", setting]].concat();
        refused(CONFIGS, &args).assert_has(message);
    }
}
