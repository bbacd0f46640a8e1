//! MULTI and EXEC, and WATCH before them. A transaction runs under one lock of the store, so nothing comes between.

use std::borrow::Cow;

use super::{Call, Outcome};
use crate::reply::{Error, error};

const NESTED: Error = error("MULTI calls can not be nested");
const EXEC_ALONE: Error = error("EXEC without MULTI");
const DISCARD_ALONE: Error = error("DISCARD without MULTI");
const WATCH_WITHIN: Error = error("WATCH inside MULTI is not allowed");
const ABORTED: Error = error("EXECABORT Transaction discarded because of previous errors.");

pub(super) fn multi(call: &mut Call<'_, '_>) -> Outcome {
    if call.session.transaction.is_some() {
        return Err(NESTED);
    }
    call.session.transaction = Some(Box::default());
    call.session.publish_facts();
    call.reply.ok();
    Ok(())
}

/// Has a command wait for EXEC.
pub(super) fn queue(index: u8, call: &mut Call<'_, '_>) {
    let Some(transaction) = &mut call.session.transaction else { return };
    match transaction.push(index, call.args) {
        Ok(()) => call.reply.raw("+QUEUED\r\n"),
        Err(error) => {
            transaction.refused = true;
            call.reply.error(&error);
        }
    }
    call.session.publish_facts();
}

pub(super) fn exec(call: &mut Call<'_, '_>) -> Outcome {
    let Some(transaction) = call.session.transaction.take() else { return Err(EXEC_ALONE) };
    for key in call.session.watched.iter() {
        // One that has expired meanwhile has changed.
        call.store.contains(key);
    }
    let has_changed = call.session.client.take_change();
    call.session.unwatch(call.store);
    call.session.publish_facts();
    if transaction.refused {
        return Err(ABORTED);
    }
    if has_changed {
        call.reply.null_array();
        return Ok(());
    }
    call.reply.array(transaction.len());
    call.session.executes = true;
    for (index, args) in transaction.iter() {
        let Call { store, session, reply, .. } = &mut *call;
        Call { store, session, reply, args }.run(index);
    }
    call.session.executes = false;
    let Call { session, reply, .. } = call;
    if session.is_subscriber() {
        reply.append(|buffer| {
            session.client.outbox.take(buffer);
            Ok(())
        });
    }
    Ok(())
}

/// Discards a transaction whose EXEC was refused.
pub(super) fn abort(call: &mut Call<'_, '_>, error: &Error) {
    call.session.transaction = None;
    call.session.unwatch(call.store);
    call.session.publish_facts();
    let text = [b"EXECABORT Transaction discarded because of: ", &**error].concat();
    call.reply.error(&Cow::Owned(text));
}

pub(super) fn discard(call: &mut Call<'_, '_>) -> Outcome {
    if call.session.transaction.take().is_none() {
        return Err(DISCARD_ALONE);
    }
    call.session.unwatch(call.store);
    call.session.publish_facts();
    call.reply.ok();
    Ok(())
}

pub(super) fn watch(call: &mut Call<'_, '_>) -> Outcome {
    if call.session.transaction.is_some() {
        return Err(WATCH_WITHIN);
    }
    call.session.watched.check_room(call.args.from(1))?;
    for key in call.args.from(1) {
        // What has expired already is not a change.
        call.store.contains(key);
        if call.session.watched.insert(key) {
            call.store.watched.add(key, &call.session.client);
        }
    }
    call.reply.ok();
    Ok(())
}

pub(super) fn unwatch(call: &mut Call<'_, '_>) -> Outcome {
    call.session.unwatch(call.store);
    call.reply.ok();
    Ok(())
}
