//! What is used of io_uring here: the best that passes its self-test and may be used.

use std::sync::OnceLock;

use crate::features::{Feature, FeatureReport, Features, Report};
use crate::ring::Setup;
use crate::selftest::{Evidence, test};
use crate::unavailable::Unavailable;

/// How a ring is set up, and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) features: Features,
}

/// The best that passes its self-test and may be used. The test is made once per process and way to set a ring up; a
/// failure that may pass, for lack of memory or descriptors, is tried again.
pub(crate) fn plan(allowed: Features) -> Result<Plan, Unavailable> {
    Ok(Evidence::best(allowed)?.plan(allowed))
}

/// What io_uring can do here, and what an engine would use of it that may use `allowed`.
pub fn probe(allowed: Features) -> Report {
    let evidence = match Evidence::best(allowed) {
        Ok(evidence) => evidence,
        Err(unavailable) => {
            return Report { unavailable: Some(unavailable), features: Vec::new() };
        }
    };
    let used = evidence.plan(allowed).features;
    let report = |&feature: &Feature| {
        let seen = match feature {
            Feature::DeferredCompletions => Evidence::of(Setup::DeferTaskrun).map(drop),
            Feature::CooperativeCompletions => Evidence::of(Setup::CoopTaskrun).map(drop),
            _ => return evidence.report(feature, allowed, used),
        };
        feature_report(feature, &seen, allowed, used)
    };
    Report { unavailable: None, features: Feature::ALL.iter().map(report).collect() }
}

fn feature_report(
    feature: Feature,
    seen: &Result<(), Unavailable>,
    allowed: Features,
    used: Features,
) -> FeatureReport {
    let (supported, used) = (seen.is_ok(), used.contains(feature));
    let reason = match seen {
        Err(unavailable) => unavailable.what_happened(),
        Ok(()) if used => "passed its test".into(),
        Ok(()) if !allowed.contains(feature) => "turned off".into(),
        Ok(()) => "something better is used, or what it belongs to is not".into(),
    };
    FeatureReport { feature, supported, used, reason }
}

impl Evidence {
    /// Of the best way to set a ring up.
    fn best(allowed: Features) -> Result<Evidence, Unavailable> {
        Evidence::best_of(allowed, Evidence::of)
    }

    fn best_of(
        allowed: Features,
        evidence: impl Fn(Setup) -> Result<Evidence, Unavailable>,
    ) -> Result<Evidence, Unavailable> {
        let mut refused = Unavailable::old_kernel("knows no way to set up a ring");
        for setup in Setup::ALL {
            if setup.feature().is_some_and(|feature| !allowed.contains(feature)) {
                continue;
            }
            match evidence(setup) {
                Ok(evidence) => return Ok(evidence),
                // It says nothing about this way, and the next one is not to be taken for the best.
                Err(unavailable) if unavailable.may_pass() => return Err(unavailable),
                Err(unavailable) => refused = unavailable,
            }
        }
        Err(refused)
    }

    fn of(setup: Setup) -> Result<Evidence, Unavailable> {
        type Known = OnceLock<Result<Evidence, Unavailable>>;
        static KNOWN: [Known; 3] = [const { OnceLock::new() }; 3];
        let known = &KNOWN[setup as usize];
        if let Some(known) = known.get() {
            return known.clone();
        }
        let found = test(setup);
        match &found {
            Err(unavailable) if unavailable.may_pass() => found,
            _ => known.get_or_init(|| found).clone(),
        }
    }

    fn plan(&self, allowed: Features) -> Plan {
        let setup = self.setup;
        let mut features = Features::BASE;
        if let Some(feature) = setup.feature() {
            features = features.with(feature);
        }
        for (feature, seen) in &self.features {
            let belongs = *feature != Feature::IncrementalBuffers
                || features.contains(Feature::MultishotReceive);
            if seen.is_ok() && belongs && allowed.contains(*feature) {
                features = features.with(*feature);
            }
        }
        Plan { setup, features }
    }

    fn report(&self, feature: Feature, allowed: Features, used: Features) -> FeatureReport {
        let unknown = Err(Unavailable::old_kernel("was not tested for it"));
        let seen = self.features.iter().find(|(tested, _)| *tested == feature);
        feature_report(feature, seen.map_or(&unknown, |(_, seen)| seen), allowed, used)
    }
}

#[cfg(test)]
mod tests;
