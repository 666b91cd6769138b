/**
 * Makes the events that `record` takes. Each is about one user at one business, and happens now unless
 * `time` says when it did.
 *
 * @packageDocumentation
 */
import { ConsentEvent, OptInMethod } from './gen/consent/v1/consent';
import type { Timestamp } from './gen/google/protobuf/timestamp';

/** Whom an event is about. */
export interface About {
  /**
   * The user: a phone number with its country code in any usual notation, WhatsApp's id of the user at
   * the business, or an id of your own with a letter in it; 160 bytes at most.
   */
  user: string;
  /** The business, by the deployment's own id. */
  business: string;
  /** When it happened. Unset: now, by the ledger's clock. */
  time?: Date | undefined;
}

/** How an opt-in was obtained. */
export type OptInMethodName =
  | 'SMS'
  | 'WEBSITE'
  | 'WHATSAPP'
  | 'PHONE'
  | 'IN_PERSON'
  | 'WHATSAPP_SIGNUP';

/** What proves an opt-in. */
export interface OptInEvidence {
  /** How it was obtained. */
  method: OptInMethodName;
  /**
   * The words that the user agreed to, as shown or read out. They must name WhatsApp and the business.
   * Not needed for `WHATSAPP_SIGNUP`.
   */
  statement?: string | undefined;
  /** The business's name as the user saw it; the statement must contain it. */
  businessName?: string | undefined;
  /** BCP 47 tag of the statement's language, such as `pt-BR`. */
  locale?: string | undefined;
  /**
   * Where the proof is kept: a URL, a message id, the reference of a document. Of a `WHATSAPP_SIGNUP` its
   * `signup_id`, which is required.
   */
  reference?: string | undefined;
  /** For `WHATSAPP_SIGNUP`: Meta's id of the business's number that the user signed up with. */
  phoneNumberId?: string | undefined;
}

/** The user agreed to a category, such as `utility.order_updates`, or to a whole class. */
export function optIn(
  event: About & {
    category: string;
    evidence: OptInEvidence;
    /** When the opt-in lapses. Unset: never. */
    expireTime?: Date | undefined;
    /** Whether a double opt-in waits for its confirmation: a second event without it confirms. */
    pending?: boolean | undefined;
  },
): ConsentEvent {
  const { category, evidence, expireTime, pending } = event;
  const method = OptInMethod[`OPT_IN_METHOD_${evidence.method}`];
  return made(event, {
    optIn: {
      category,
      evidence: { ...evidence, method },
      expireTime: expireTime && timestampOf(expireTime),
      pending: pending ?? false,
    },
  });
}

/** The user withdrew from a category, from a class, or from everything: `*`, the default. */
export function optOut(
  event: About & {
    scope?: string | undefined;
    /** What the user said or did, for the record. */
    reference?: string | undefined;
  },
): ConsentEvent {
  const { scope = '*', reference = '' } = event;
  return made(event, { optOut: { scope, reference } });
}

/** The user sent the business a message, or called it: the 24-hour window opens again. */
export function inboundMessage(
  event: About & {
    /** The text. It is read at once for keywords such as STOP, and never stored. */
    text?: string | undefined;
    /** WhatsApp's id of the message, for the record. */
    messageId?: string | undefined;
  },
): ConsentEvent {
  const { text = '', messageId = '' } = event;
  return made(event, { inboundMessage: { text, messageId } });
}

/** The user turned the business's marketing off or on in WhatsApp's own settings. */
export function platformPreference(
  event: About & {
    marketingStopped: boolean;
    /** Meta's id of the business's number that it was stopped or resumed at. Unset: unknown. */
    phoneNumberId?: string | undefined;
  },
): ConsentEvent {
  const { marketingStopped, phoneNumberId = '' } = event;
  return made(event, { platformPreference: { marketingStopped, phoneNumberId } });
}

/** WhatsApp refused a message that was sent to this user. */
export function deliveryFailure(
  event: About & {
    /** WhatsApp's error code, such as 131047, 131049 or 131050. */
    code: number;
    /** Meta's id of the business's number that the message was sent from. */
    phoneNumberId?: string | undefined;
  },
): ConsentEvent {
  const { code, phoneNumberId = '' } = event;
  return made(event, { deliveryFailure: { code, phoneNumberId } });
}

/** The user must not be contacted, or, where `suppressed` is false, may be again. */
export function suppression(
  event: About & {
    suppressed: boolean;
    /** Why, for the record. */
    reference?: string | undefined;
  },
): ConsentEvent {
  const { suppressed, reference = '' } = event;
  return made(event, { suppression: { suppressed, reference } });
}

/** Another id of the same person: a denial under either holds under both. */
export function link(
  event: About & {
    otherUser: string;
    /** Whether the person left `user` for `otherUser`, such as by changing the number. */
    moved?: boolean | undefined;
  },
): ConsentEvent {
  const { otherUser, moved = false } = event;
  return made(event, { link: { otherUserId: otherUser, moved } });
}

/** WhatsApp has a template in this class from now on: marketing, utility or authentication. */
export function templateCategory(
  event: Omit<About, 'user'> & {
    template: { name: string; language: string };
    category: string;
    /** Who or what said so, for the record. */
    reference?: string | undefined;
  },
): ConsentEvent {
  const { template, category, reference = '' } = event;
  const user = `template:${template.name}:${template.language}`;
  return made({ ...event, user }, { templateCategory: { category, reference } });
}

/** WhatsApp counts all utility templates of the business as marketing, or no longer. */
export function templateRestriction(
  event: Omit<About, 'user'> & {
    restricted: boolean;
    /** When that ends by itself. Unset: not before it is lifted. */
    untilTime?: Date | undefined;
    /** Who or what said so, for the record. */
    reference?: string | undefined;
  },
): ConsentEvent {
  const { restricted, untilTime, reference = '' } = event;
  const until = untilTime && timestampOf(untilTime);
  const about = { ...event, user: 'template:*' };
  return made(about, { templateRestriction: { restricted, untilTime: until, reference } });
}

type What = Parameters<typeof ConsentEvent.fromPartial>[0];

function made({ user, business, time }: About, what: What): ConsentEvent {
  const eventTime = time && timestampOf(time);
  return ConsentEvent.fromPartial({ userId: user, businessId: business, eventTime, ...what });
}

function timestampOf(time: Date): Timestamp {
  const milliseconds = time.getTime();
  const seconds = Math.floor(milliseconds / 1_000);
  return { seconds: BigInt(seconds), nanos: (milliseconds - seconds * 1_000) * 1_000_000 };
}
