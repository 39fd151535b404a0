//! Names made up by the server, for `metadata.generateName`.

use rand::Rng;

/// No vowels, so that no words come out, and none of `0 1 3`, which look like letters.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

const SUFFIX: usize = 5;

/// The base is cut so that the whole is a DNS label.
const BASE_MAX: usize = 63 - SUFFIX;

/// `base` and five random characters.
pub fn generate(base: &str) -> String {
    let base: String = base.chars().take(BASE_MAX).collect();
    format!("{base}{}", suffix(SUFFIX))
}

/// Random characters of the alphabet for names.
pub fn suffix(count: usize) -> String {
    let mut random = rand::rng();
    (0..count).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generate("web-").len(), 9);
        assert_eq!(generate(&"a".repeat(80)).len(), 63);
    }
}
