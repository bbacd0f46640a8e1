//! Patterns of names, as Redis has them: `*`, `?`, `[a-z]`, `[^a]`, and `\` before what is meant as it stands.

/// Whether upper and lower case are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Matters,
    Ignored,
}

/// Whether a name fits a pattern. Goes back to the last star only, so it takes no more steps than the product of the
/// two lengths.
pub(crate) fn matches(mut pattern: &[u8], mut name: &[u8], case: Case) -> bool {
    // Where to go on, with one byte more for the last star, when the rest does not fit.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            if rest.is_empty() {
                return true;
            }
            retry = Some((rest, name));
            pattern = rest;
            continue;
        }
        match (pattern, name) {
            ([], []) => return true,
            ([_, ..], [byte, later @ ..]) => {
                let (fits, rest) = fits(pattern, *byte, case);
                if fits {
                    (pattern, name) = (rest, later);
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((rest, [_, later @ ..])) => {
                retry = Some((rest, later));
                (pattern, name) = (rest, later);
            }
            _ => return false,
        }
    }
}

/// Whether a byte fits what the pattern begins with, which is no star; and what follows it.
fn fits(pattern: &[u8], byte: u8, case: Case) -> (bool, &[u8]) {
    let same = |other: u8| match case {
        Case::Matters => other == byte,
        Case::Ignored => other.eq_ignore_ascii_case(&byte),
    };
    match pattern {
        [b'?', rest @ ..] => (true, rest),
        [b'[', b'^', class @ ..] => {
            let (fits, rest) = fits_class(class, byte, case);
            (!fits, rest)
        }
        [b'[', class @ ..] => fits_class(class, byte, case),
        [b'\\', escaped, rest @ ..] => (same(*escaped), rest),
        [other, rest @ ..] => (same(*other), rest),
        [] => (false, pattern),
    }
}

/// The same for a class, behind its bracket. One that is not closed ends with the pattern.
fn fits_class(mut class: &[u8], byte: u8, case: Case) -> (bool, &[u8]) {
    let fold = |byte: u8| if case == Case::Ignored { byte.to_ascii_lowercase() } else { byte };
    let mut fits = false;
    loop {
        class = match class {
            [] => return (fits, class),
            [b']', rest @ ..] => return (fits, rest),
            [b'\\', escaped, rest @ ..] => {
                fits |= *escaped == byte;
                rest
            }
            [first, b'-', last, rest @ ..] => {
                let (first, last) = (fold(*first.min(last)), fold(*first.max(last)));
                fits |= (first..=last).contains(&fold(byte));
                rest
            }
            [other, rest @ ..] => {
                fits |= fold(*other) == fold(byte);
                rest
            }
        };
    }
}
