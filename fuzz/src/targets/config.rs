//! A configuration: it is refused with a sentence, or all that is asked of it has an answer.

use kemari::config::Config;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, "kemari.toml") {
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                assert!(!error.to_string().is_empty(), "an error says something");
                cause = error.source();
            }
        }
        Ok(config) => {
            let again = Config::parse(text, "kemari.toml").expect("the same text");
            assert_eq!(config.digest(), again.digest());
            assert!(!config.shared_keys().is_empty());
            for host in config.hosts.keys() {
                config.disks_of(host);
                config.nets_of(host);
                config.peers(host).for_each(drop);
                config.certificates_of(host);
            }
        }
    }
}

/// The documentation's example, as it is and with its comments taken for settings.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let example = include_str!("../../../docs/example.toml");
    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.contains(" = ") || rest.starts_with('[') => {
                rest.trim_start().to_owned() + "\n"
            }
            _ => line.to_owned() + "\n",
        })
        .collect();
    vec![example.into(), uncommented.into()]
}
