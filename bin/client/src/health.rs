//! Asks members how they are, and prints what they say.

use kritaclient::{Error, MemberHealth};

use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;
use crate::print;

/// Prints how the named node is, or all members of its cluster.
///
/// # Errors
/// A member is not healthy, or refused to say.
pub fn check(target: &Target, all: bool, print: &mut Printer<'_>) -> Result<(), Failure> {
    let members = ask(target, all)?;
    print::health(print, &members)?;
    judge(&members)
}

/// How members that have been printed end the command.
///
/// # Errors
/// A member is not healthy, or refused to say.
pub fn judge(members: &[MemberHealth]) -> Result<(), Failure> {
    let refused = members.iter().filter_map(|member| member.status.as_ref().err());
    if let Some(refused) = refused.into_iter().find(|error| print::is_refusal(error)) {
        return Err(refused.clone().into());
    }
    let all_healthy = !members.is_empty() && members.iter().all(print::is_healthy);
    if all_healthy { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// How the named node is, or all members of its cluster. A node that is not reached is among them.
pub(crate) fn ask(target: &Target, all: bool) -> Result<Vec<MemberHealth>, Failure> {
    let address = target.address();
    match target.client() {
        Ok(client) if all => Ok(client.health()?),
        Ok(client) => Ok(vec![member(&address, client.node_status(&address))?]),
        // Nobody answers: then all that were named are unreachable.
        Err(Failure::Krita(error)) => {
            let addresses = if all { target.addresses() } else { vec![address] };
            addresses.iter().map(|address| member(address, Err(error.clone()))).collect()
        }
        Err(other) => Err(other),
    }
}

/// One node asked directly. Only what says something of its health is its state; the rest is the caller's error.
fn member(
    address: &str,
    status: Result<kritaclient::v1::NodeStatusReply, Error>,
) -> Result<MemberHealth, Failure> {
    if let Err(error) = &status
        && !matches!(error, Error::Unavailable(_))
    {
        return Err(error.clone().into());
    }
    let node = status.as_ref().ok().and_then(|status| status.node.clone()).unwrap_or_default();
    Ok(MemberHealth {
        node_number: node.node_number,
        node_id: node.node_id,
        address: address.to_owned(),
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kritaclient::ErrorCode;

    #[test]
    fn a_refused_token_is_no_statement_about_health() {
        let denied = Error::new(ErrorCode::Unauthenticated, "who are you");
        assert!(matches!(member("a", Err(denied.clone())), Err(Failure::Krita(Error::Denied(_)))));
        let gone = member("a", Err(Error::new(ErrorCode::Unavailable, "no route"))).unwrap();
        assert!(!print::is_healthy(&gone));
        assert!(matches!(judge(std::slice::from_ref(&gone)), Err(Failure::Unhealthy)));
        let refusing = MemberHealth { status: Err(denied), ..gone.clone() };
        assert!(matches!(judge(&[gone, refusing]), Err(Failure::Krita(Error::Denied(_)))));
    }
}
