//! Lengths of keys and values: one, a range, or several with weights. A length follows from the key and the writing,
//! so that whoever reads knows it.

use std::fmt;
use std::str::FromStr;

/// A distribution of lengths, as typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sizes {
    /// `100`
    Fixed(u32),
    /// `uniform:16-1000`: each length alike, both ends included.
    Uniform(u32, u32),
    /// `100*9,4096*1`: lengths and their weights.
    Weighted(Vec<(u32, u32)>),
}

impl Sizes {
    /// The length that a random number chooses.
    pub fn pick(&self, random: u64) -> u32 {
        match self {
            Self::Fixed(length) => *length,
            Self::Uniform(least, most) => {
                let span = u64::from(most - least) + 1;
                least + u32::try_from(random % span).unwrap_or(0)
            }
            Self::Weighted(choices) => {
                let total: u64 = choices.iter().map(|(_, weight)| u64::from(*weight)).sum();
                let mut at = random % total.max(1);
                for (length, weight) in choices {
                    match at.checked_sub(u64::from(*weight)) {
                        None => return *length,
                        Some(rest) => at = rest,
                    }
                }
                choices.last().map_or(0, |(length, _)| *length)
            }
        }
    }

    /// The shortest and the longest.
    pub fn bounds(&self) -> (u32, u32) {
        match self {
            Self::Fixed(length) => (*length, *length),
            Self::Uniform(least, most) => (*least, *most),
            Self::Weighted(choices) => {
                let lengths = choices.iter().map(|(length, _)| *length);
                (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0))
            }
        }
    }

    /// The mean length.
    pub fn mean(&self) -> f64 {
        match self {
            Self::Fixed(length) => f64::from(*length),
            Self::Uniform(least, most) => f64::midpoint(f64::from(*least), f64::from(*most)),
            Self::Weighted(choices) => {
                let total: f64 = choices.iter().map(|(_, weight)| f64::from(*weight)).sum();
                let sum: f64 =
                    choices.iter().map(|(length, weight)| f64::from(*length) * f64::from(*weight)).sum();
                sum / total
            }
        }
    }

    /// Checks that all lengths lie within bounds.
    ///
    /// # Errors
    /// One does not; the text says which bound.
    pub fn within(&self, least: u32, most: u32, what: &str) -> Result<(), String> {
        let (shortest, longest) = self.bounds();
        if shortest < least || longest > most {
            return Err(format!("{what} have {least} to {most} bytes, not {self}"));
        }
        Ok(())
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.trim().parse::<u32>().map_err(|_| format!("{text:?} is no number of bytes"));
        if let Some(range) = text.strip_prefix("uniform:") {
            let (least, most) = range.split_once('-').ok_or("want uniform:LEAST-MOST")?;
            let (least, most) = (number(least)?, number(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}"));
            }
            return Ok(Self::Uniform(least, most));
        }
        if text.contains('*') {
            let mut choices = Vec::new();
            for choice in text.split(',') {
                let (length, weight) = choice.split_once('*').ok_or("want LENGTH*WEIGHT,LENGTH*WEIGHT")?;
                let weight = number(weight)?;
                if weight == 0 {
                    return Err("a weight is at least 1".to_owned());
                }
                choices.push((number(length)?, weight));
            }
            return Ok(Self::Weighted(choices));
        }
        number(text).map(Self::Fixed).map_err(|error| {
            format!("{error}; want a number, uniform:LEAST-MOST, or LENGTH*WEIGHT,LENGTH*WEIGHT")
        })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Uniform(least, most) => write!(f, "uniform:{least}-{most}"),
            Self::Weighted(choices) => {
                let texts: Vec<String> =
                    choices.iter().map(|(length, weight)| format!("{length}*{weight}")).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::Random;

    #[test]
    fn what_is_typed_is_what_is_shown_and_picked() {
        for (text, bounds, mean) in [
            ("100", (100, 100), 100.0),
            ("uniform:10-20", (10, 20), 15.0),
            ("100*9,4096*1", (100, 4096), 499.6),
        ] {
            let sizes: Sizes = text.parse().unwrap();
            assert_eq!((sizes.to_string().as_str(), sizes.bounds()), (text, bounds));
            let mut random = Random::new(1);
            let count = 100_000;
            let sum: u64 = (0..count).map(|_| u64::from(sizes.pick(random.draw()))).sum();
            let found = sum as f64 / f64::from(count);
            assert!((sizes.mean() - mean).abs() < 1e-9);
            assert!((found / mean - 1.0).abs() < 0.03, "{text}: {found} is not near {mean}");
        }
        for bad in ["", "x", "uniform:5", "uniform:9-5", "100*", "100*0", "1*2,3"] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad}");
        }
        assert!("uniform:10-20".parse::<Sizes>().unwrap().within(11, 99, "keys").is_err());
    }
}
