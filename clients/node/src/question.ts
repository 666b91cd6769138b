import { MessageForm } from './gen/consent/v1/consent';
import type { CanSendRequest } from './gen/consent/v1/consent_service';
import { malformed, type FieldViolation, type Failure } from './status';

/** What kind of message is asked about, whoever it is for. */
export interface Message {
  /** The business that would send, by the deployment's own id. */
  business: string;
  /**
   * `marketing`, `utility`, `authentication` or `service`, perhaps with a topic, such as
   * `utility.order_updates`.
   */
  category: string;
  /** How the message is written. Unset: the verdict says which forms are allowed. */
  form?: 'FREE_FORM' | 'TEMPLATE' | undefined;
  /**
   * The template that the message will be. The stricter of `category` and of what WhatsApp says of the
   * template decides.
   */
  template?: { name: string; language: string } | undefined;
}

/** A question: may this message be sent to this user? */
export interface Question extends Message {
  /**
   * The user: a phone number with its country code in any usual notation, WhatsApp's id of the user at
   * the business, or an id of your own with a letter in it.
   */
  user: string;
  /**
   * Wait, up to the deadline, until the sidecar's table holds this revision, as `record` returned it.
   * Unset or 0: do not wait.
   */
  minRevision?: bigint | undefined;
}

const FORMS = new Map<unknown, MessageForm>([
  [undefined, MessageForm.MESSAGE_FORM_UNSPECIFIED],
  ['FREE_FORM', MessageForm.MESSAGE_FORM_FREE_FORM],
  ['TEMPLATE', MessageForm.MESSAGE_FORM_TEMPLATE],
]);

const LARGEST_REVISION = 2n ** 64n - 1n;

/** A question as it is sent, or what is wrong with it. Takes anything: not every caller has types. */
export function requestOf(question: Question): CanSendRequest | Failure {
  const { user, business, category, form, template: given, minRevision } = question ?? {};
  // Read once: what is checked is what is sent.
  const template = given == null ? undefined : { name: given.name, language: given.language };
  const formNumber = FORMS.get(form ?? undefined);
  const least = minRevision ?? 0n;
  if (
    isText(user) &&
    isText(business) &&
    isText(category) &&
    formNumber !== undefined &&
    (!template || (isText(template.name) && isText(template.language))) &&
    typeof least === 'bigint' &&
    least >= 0n &&
    least <= LARGEST_REVISION
  ) {
    return {
      userId: user,
      businessId: business,
      category,
      form: formNumber,
      minRevision: least,
      template,
    };
  }
  const violations: FieldViolation[] = [];
  textual(violations, 'user_id', user);
  textual(violations, 'business_id', business);
  textual(violations, 'category', category);
  if (formNumber === undefined) {
    violations.push({ field: 'form', description: 'must be FREE_FORM, TEMPLATE or unset' });
  }
  if (template) {
    textual(violations, 'template.name', template.name);
    textual(violations, 'template.language', template.language);
  }
  if (typeof least !== 'bigint' || least < 0n || least > LARGEST_REVISION) {
    violations.push({ field: 'min_revision', description: 'must be a bigint of 64 bits' });
  }
  return malformed(violations);
}

/** A message as it is sent, or what is wrong with it. */
export function messageOf(
  message: Message,
): Pick<CanSendRequest, 'businessId' | 'category' | 'form' | 'template'> | Failure {
  const request = requestOf({ ...message, user: '', minRevision: undefined });
  if ('code' in request) return request;
  const { businessId, category, form, template } = request;
  return { businessId, category, form, template };
}

/**
 * Whether a value is a string that UTF-8 can hold. A surrogate without its partner would be sent as
 * U+FFFD, so that two ids of users would become the same one.
 */
export function isText(value: unknown): value is string {
  return typeof value === 'string' && value.isWellFormed();
}

function textual(violations: FieldViolation[], field: string, value: unknown): void {
  if (typeof value !== 'string') {
    violations.push({ field, description: 'must be a string' });
  } else if (!value.isWellFormed()) {
    violations.push({ field, description: 'must not have a surrogate without its partner' });
  }
}

/** The most bytes that a request can take when it is sent: three for each unit of UTF-16. */
export function mostBytes({ userId, businessId, category, template }: CanSendRequest): number {
  const named = template ? template.name.length + template.language.length : 0;
  return 3 * (userId.length + businessId.length + category.length + named) + OTHER_BYTES;
}

// Tags and lengths of all fields, the form and the revision.
const OTHER_BYTES = 48;
